from reidcore.testing import contract

KMEANS = {"clustering": "kmeans", "every": 1}
test_contract = contract(
    "mlt",
    options={
        "mlt": {**KMEANS, "clusters": [3, 4, 5], "radii": [0.4, 0.5], "source_weight": 0.3},
        "cluster-and-train": {**KMEANS, "clusters": 4},
    },
)
