"""Cases of several factors: all of the product, or so many that each pair of values occurs."""

from itertools import combinations, product


def pairwise(factors):
    """Choose cases so that each two values of two factors occur together in one of them.

    Args:
        factors: Name of each factor to its values.

    Returns:
        Tuples with a value of each factor, in the order of the factors; the same each time.
    """
    values = [list(some) for some in factors.values()]
    missing = {
        ((i, a), (j, b)): None
        for i, j in combinations(range(len(values)), 2)
        for a, b in product(values[i], values[j])
    }
    cases = []
    while missing:
        case = dict(next(iter(missing)))
        for place in range(len(values)):
            if place not in case:
                case[place] = max(values[place], key=lambda value: _gain(missing, case, place, value))
        cases.append(tuple(case[place] for place in range(len(values))))
        for pair in combinations(sorted(case.items()), 2):
            missing.pop(pair, None)
    return cases


def _gain(missing, case, place, value):
    pairs = (tuple(sorted([(place, value), other], key=lambda one: one[0])) for other in case.items())
    return sum(pair in missing for pair in pairs)


def every(factors):
    """The whole product, in the same form."""
    return list(product(*factors.values()))
