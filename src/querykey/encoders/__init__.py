"""What turns items into rows: frozen models and the FC layer on top."""

from querykey.errors import require_train

require_train(__name__)
