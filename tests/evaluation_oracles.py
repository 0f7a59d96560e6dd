"""Retrieval, kNN and geometry as plain loops over lists: nothing shared with the package."""

import math


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return dot / lengths if lengths else 0.0


def ranked(query, keys, eligible):
    """Keys by falling cosine; those that are equal by rising index."""
    places = [j for j in range(len(keys)) if eligible[j]]
    return sorted(places, key=lambda j: (-round(cosine(query, keys[j]), 6), j))


def hit_at(order, grades, k):
    if not any(g > 0 for g in grades):
        return math.nan
    return float(any(grades[j] > 0 for j in order[:k]))


def recall_at(order, grades, k):
    relevant = [j for j in range(len(grades)) if grades[j] > 0]
    if not relevant:
        return math.nan
    return len([j for j in order[:k] if j in relevant]) / len(relevant)


def r_precision(order, grades):
    return recall_at(order, grades, len([g for g in grades if g > 0]))


def average_precision_at_r(order, grades):
    r = len([g for g in grades if g > 0])
    if not r:
        return math.nan
    total = 0.0
    for i in range(min(r, len(order))):
        if grades[order[i]] > 0:
            total += len([j for j in order[: i + 1] if grades[j] > 0]) / (i + 1)
    return total / r


def reciprocal_rank(order, grades, k):
    if not any(g > 0 for g in grades):
        return math.nan
    for i, j in enumerate(order[:k]):
        if grades[j] > 0:
            return 1 / (i + 1)
    return 0.0


def ndcg_at(order, grades, k):
    best = sorted((g for g in grades if g > 0), reverse=True)
    if not best:
        return math.nan
    gained = sum(max(0, grades[j]) / math.log2(i + 2) for i, j in enumerate(order[:k]))
    return gained / sum(g / math.log2(i + 2) for i, g in enumerate(best[:k]))


def knn(query, bank, labels, k, temperature):
    voters = ranked(query, bank, [label != -1 for label in labels])[:k]
    votes = {}
    for j in voters:
        votes[labels[j]] = votes.get(labels[j], 0.0) + math.exp(cosine(query, bank[j]) / temperature)
    return max(votes, key=votes.get)


def apart(a, b):
    """Squared distance of two rows scaled to length 1."""
    a, b = ([x / math.sqrt(sum(y * y for y in row)) for x in row] for row in (a, b))
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def class_alignment(rows, labels):
    same = [
        apart(rows[i], rows[j])
        for i in range(len(rows))
        for j in range(len(rows))
        if i != j and labels[i] == labels[j] != -1
    ]
    return sum(same) / len(same)


def uniformity(rows, t):
    pairs = [
        math.exp(-t * apart(rows[i], rows[j])) for i in range(len(rows)) for j in range(len(rows)) if i != j
    ]
    return math.log(sum(pairs) / len(pairs))
