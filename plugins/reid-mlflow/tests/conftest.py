import pytest


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    """Leave out the network, and whatever server the environment names."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
