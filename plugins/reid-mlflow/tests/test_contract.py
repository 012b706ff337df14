from reidcore.testing import contract

test_contract = contract("mlflow", options={"mlflow": {"tags": {"team": "one"}}})
