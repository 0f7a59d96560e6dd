"""The feature store: embed, write, read, go on after an interruption."""

from querykey.errors import require_train

require_train(__name__)
