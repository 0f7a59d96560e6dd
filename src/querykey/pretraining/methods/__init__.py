"""One module a method: each step reads like its algorithm in the paper."""
