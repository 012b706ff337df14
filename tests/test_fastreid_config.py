"""FastReID's configurations become recipes that say the same."""

from pathlib import Path

import pytest
import tomli

from reidcore.recipe import load_recipe
from reidcore.testing import run_cli

FOLDER = Path(__file__).parent.parent / "examples"

# as in its repository, in the words of the reference notes
BAGTRICKS = """
MODEL:
  META_ARCHITECTURE: Baseline
  BACKBONE: {NAME: build_resnet_backbone, NORM: BN, DEPTH: 50x, LAST_STRIDE: 1, FEAT_DIM: 2048, PRETRAIN: True}
  HEADS: {NAME: EmbeddingHead, NORM: BN, WITH_BNNECK: True, POOL_LAYER: GlobalAvgPool, NECK_FEAT: before}
  LOSSES:
    NAME: ("CrossEntropyLoss", "TripletLoss",)
    CE: {EPSILON: 0.1, SCALE: 1.}
    TRI: {MARGIN: 0.3, HARD_MINING: True, NORM_FEAT: False, SCALE: 1.}
INPUT:
  SIZE_TRAIN: [256, 128]
  SIZE_TEST: [256, 128]
  REA: {ENABLED: True, PROB: 0.5}
  FLIP: {ENABLED: True}
  PADDING: {ENABLED: True}
DATALOADER: {SAMPLER_TRAIN: NaiveIdentitySampler, NUM_INSTANCE: 4, NUM_WORKERS: 8}
SOLVER:
  AMP: {ENABLED: True}
  OPT: Adam
  MAX_EPOCH: 120
  BASE_LR: 0.00035
  WEIGHT_DECAY: 0.0005
  WEIGHT_DECAY_NORM: 0.0005
  IMS_PER_BATCH: 64
  SCHED: MultiStepLR
  STEPS: [40, 90]
  GAMMA: 0.1
  WARMUP_FACTOR: 0.1
  WARMUP_ITERS: 2000
  CHECKPOINT_PERIOD: 30
TEST: {EVAL_PERIOD: 30, IMS_PER_BATCH: 128}
CUDNN_BENCHMARK: True
"""
SBS = """
_BASE_: Base-bagtricks.yml
MODEL:
  FREEZE_LAYERS: [ backbone ]
  BACKBONE: {WITH_NL: True}
  HEADS: {NECK_FEAT: after, POOL_LAYER: GeneralizedMeanPoolingP, CLS_LAYER: CircleSoftmax, SCALE: 64, MARGIN: 0.35}
  LOSSES:
    TRI: {MARGIN: 0.0}
INPUT:
  SIZE_TRAIN: [384, 128]
  AUTOAUG: {ENABLED: True, PROB: 0.1}
DATALOADER: {NUM_INSTANCE: 16}
SOLVER:
  MAX_EPOCH: 60
  SCHED: CosineAnnealingLR
  DELAY_EPOCHS: 30
  ETA_MIN_LR: 0.0000007
  FREEZE_ITERS: 1000
TEST: {EVAL_PERIOD: 10}
"""
OWN = """
_BASE_: ../Base-SBS.yml
MODEL:
  BACKBONE: {WITH_IBN: True}
  QUEUE_SIZE: 8192
DATASETS:
  NAMES: ("DukeMTMC",)
  TESTS: ("DukeMTMC",)
OUTPUT_DIR: logs/dukemtmc/sbs_R50-ibn
"""


@pytest.fixture
def configs(write) -> Path:
    write("configs/Base-bagtricks.yml", BAGTRICKS)
    write("configs/Base-SBS.yml", SBS)
    return write("configs/DukeMTMC/sbs_R50-ibn.yml", OWN)


def test_a_configuration_becomes_the_recipe_of_the_same_row(configs, write) -> None:
    done = run_cli("import", "--config-only", configs)
    assert (done.status, done.err) == (0, "no counterpart: MODEL.QUEUE_SIZE = 8192\n")
    assert done.out.startswith("# From FastReID's sbs_R50-ibn.yml.\n# No counterpart: MODEL.QUEUE_SIZE = 8192\n")
    ours = load_recipe(FOLDER / "zoo" / "dukemtmc-sbs-r50-ibn.toml").recipe
    theirs = load_recipe(write("theirs.toml", done.out)).recipe
    for table in ("input", "sampler", "backbone", "aggregator", "head", "loss", "optimizer", "scheduler", "training"):
        assert getattr(theirs, table) == getattr(ours, table), table
    assert {type(part) for part in theirs.transform} == {type(part) for part in ours.transform}
    assert [entry.dataset for entry in theirs.train] == [entry.dataset for entry in ours.train]
    assert theirs.evaluation.every == ours.evaluation.every


def test_the_bag_of_tricks_too(configs, write) -> None:
    done = run_cli("import", "--config-only", configs.parent.parent / "Base-bagtricks.yml")
    ours = load_recipe(FOLDER / "zoo" / "market1501-bot-r50.toml").recipe
    theirs = load_recipe(write("theirs.toml", done.out)).recipe
    for table in ("input", "sampler", "backbone", "aggregator", "head", "loss", "optimizer", "training"):
        assert getattr(theirs, table) == getattr(ours, table), table
    assert theirs.scheduler.milestones == ours.scheduler.milestones
    assert theirs.scheduler.warmup == pytest.approx(ours.scheduler.warmup, abs=0.2)


def test_what_has_no_counterpart_is_listed(write) -> None:
    text = "MODEL: {BACKBONE: {NAME: build_shufflenetv2_backbone}, HEADS: {EMBEDDING_DIM: 512}}\n"
    text += "INPUT: {CROP: {ENABLED: True}}\nTEST: {AQE: {ENABLED: True}}\nDATASETS:\n  NAMES: ('NAIC20_R2',)\n"
    text += "SOLVER: {SCHED: Poly, OPT: RAdam}\nMODEL2: 3\n"
    done = run_cli("import", "--config-only", write("odd.yml", text))
    for line in (
        "data set NAIC20_R2",
        "MODEL.BACKBONE.NAME = build_shufflenetv2_backbone",
        "MODEL.HEADS.EMBEDDING_DIM = 512",
        "INPUT.CROP.SIZE = (224, 224), which is another size than INPUT.SIZE_TRAIN",
        "TEST.AQE: there the neighbours are of queries and gallery together, here of the gallery",
        "SOLVER.SCHED = Poly",
        "SOLVER.OPT = RAdam",
        "MODEL2 = 3",
    ):
        assert f"no counterpart: {line}\n" in done.err
    assert tomli.loads(done.out)["run"]["name"] == "odd"


ALL = """
MODEL:
  LOSSES: {NAME: [CircleLoss, Cosface], CIRCLE: {MARGIN: 0.3, GAMMA: 64, SCALE: 0.5}}
  HEADS: {NECK_FEAT: after}
INPUT:
  SIZE_TRAIN: [256, 128]
  CROP: {ENABLED: True, SIZE: [256, 128], SCALE: [0.2, 1]}
  CJ: {ENABLED: True, PROB: 0.6, HUE: 0.05}
  AFFINE: {ENABLED: True}
  AUGMIX: {ENABLED: True, PROB: 0.3}
  RPT: {ENABLED: True, PROB: 0.2}
TEST:
  AQE: {ENABLED: True, QE_K: 6, ALPHA: 2.0}
  RERANK: {ENABLED: True, K1: 15}
"""


def test_every_augmentation_pair_loss_and_test_time_step_has_its_part(write) -> None:
    done = run_cli("import", "--config-only", write("all.yml", ALL))
    assert done.err.count("\n") == 1 and "TEST.AQE" in done.err
    recipe = tomli.loads(done.out)
    jitter = {"probability": 0.6, "brightness": 0.15, "contrast": 0.15, "saturation": 0.1, "hue": 0.05}
    assert recipe["transform"] == [
        {"name": "random-resized-crop", "area": [0.2, 1], "ratio": [3 / 4, 4 / 3]},
        {"name": "color-jitter", **jitter},
        {"name": "affine"},
        {"name": "augmix", "probability": 0.3, "severity": 1, "depth": 1, "alpha": 0.1},
        {"name": "random-patch", "probability": 0.2},
    ]
    circle, cosface = recipe["loss"]
    assert circle == {"name": "pair-circle", "feature": "after", "margin": 0.3, "scale": 64.0, "weight": 0.5}
    assert cosface == {"name": "pair-cosface", "feature": "after", "margin": 0.25, "scale": 128.0, "weight": 1.0}
    assert recipe["test"][0]["postprocess"] == [
        {"name": "query-expansion", "k": 5, "alpha": 2.0, "database": True},
        {"name": "k-reciprocal", "k1": 15, "k2": 6, "weight": 0.3},
    ]
    load_recipe(write("recipe.toml", done.out))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: [", "is no YAML"),
        ("- a", "holds no configuration of FastReID"),
        ("_BASE_: nowhere.yml", "cannot read"),
        ("A: !!python/object/apply:print ['seen']", "is no YAML"),
    ],
)
def test_other_files_are_refused_and_run_nothing(text, message, write) -> None:
    done = run_cli("import", "--config-only", write("x.yml", text))
    assert done.status == 2 and message in done.err and "seen" not in done.out


def test_without_what_to_import_it_says_what_is_expected() -> None:
    assert "expected FILE --from fastreid|torchreid|torchvision|timm -o RUN" in run_cli("import").err
