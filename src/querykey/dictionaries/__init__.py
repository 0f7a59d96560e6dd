"""Where keys come from."""

from querykey.errors import require_train

require_train(__name__)
