"""How good an embedding is, always beside its baselines."""

from querykey.errors import require_train

require_train(__name__)
