"""The feature store: embed, write, read, resume after an interruption."""

from querykey.errors import require_train

require_train(__name__)
