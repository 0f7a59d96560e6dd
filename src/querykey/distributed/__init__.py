"""Several processes: who they are, what they exchange, and which rows each of them holds."""

from querykey.errors import require_train

require_train(__name__)
