"""Write the keys that `querykey help settings` and `querykey help pretraining` show.

    python scripts/settings_help.py

The small install has no torch, which the settings classes need; so their keys are files of the package.
"""

from pathlib import Path

from querykey.runs.adapter_settings import describe_settings
from querykey.runs.pretrain_settings import describe_pretrain_settings

FOLDER = Path(__file__).parents[1] / "src/querykey/cli"
TOPICS = {"settings": describe_settings, "pretraining": describe_pretrain_settings}

if __name__ == "__main__":
    for topic, describe in TOPICS.items():
        (FOLDER / f"help_{topic}.txt").write_text(describe() + "\n", encoding="utf-8")
