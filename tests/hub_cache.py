"""A Hugging Face cache made by hand, and a process that is offline with it."""

import shutil


def in_cache(home, name, source):
    """Lay `source` out as huggingface_hub caches a repository."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def go_offline(home, monkeypatch):
    """This process, its Hugging Face libraries already imported, offline with that home."""
    import huggingface_hub.constants as hub
    import transformers.utils.hub as transformers_hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(home / "hub"))
    for name in ("TRANSFORMERS_CACHE", "HF_HUB_CACHE"):
        if hasattr(transformers_hub, name):
            monkeypatch.setattr(transformers_hub, name, str(home / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
