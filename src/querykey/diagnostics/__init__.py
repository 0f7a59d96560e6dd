"""What is wrong with a dictionary, a run or an embedding, one name a metric."""

from querykey.errors import require_train

require_train(__name__)
