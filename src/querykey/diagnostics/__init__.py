"""What is wrong with a dictionary, a run or an embedding, one name a metric."""
