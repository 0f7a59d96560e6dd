"""One module a kind of source: images, tables, arrays, collections with judgements."""
