"""Process groups: collective operations and sharded rows."""

from querykey.errors import require_train

require_train(__name__)
