"""Each equation as plain loops over one query's scores: `math` alone, nothing shared with src."""

import math


def info_nce(positives, negatives, *, temperature):
    """Khosla et al. 2020, eq. 2; with one positive van den Oord et al. 2018, eq. 4."""
    if not positives:
        return 0.0
    total = sum(math.exp(s / temperature) for s in positives + negatives)
    return -sum(math.log(math.exp(s / temperature) / total) for s in positives) / len(positives)


def nca(positives, negatives, *, temperature):
    """Wu et al. 2018, arXiv:1808.04699, eq. 6: the probability of any neighbour of the class."""
    if not positives:
        return 0.0
    found = sum(math.exp(s / temperature) for s in positives)
    return -math.log(found / (found + sum(math.exp(s / temperature) for s in negatives)))


def multi_similarity(positives, negatives, *, alpha, beta, base, epsilon):
    """Wang et al. 2019, sec. 4: mine, then weigh."""
    if epsilon is not None:
        lowest, highest = min(positives, default=math.inf), max(negatives, default=-math.inf)
        positives = [s for s in positives if s < highest + epsilon]
        negatives = [s for s in negatives if s > lowest - epsilon]
    pull = math.log(1 + sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
    push = math.log(1 + sum(math.exp(beta * (s - base)) for s in negatives)) / beta
    return pull + push


def circle(positives, negatives, *, margin, gamma, weights_from=None):
    """Sun et al. 2020, sec. 3; `weights_from` = (positives, negatives) gives the weights alone."""
    fixed_positives, fixed_negatives = weights_from or (positives, negatives)
    push = sum(
        math.exp(gamma * max(0, fixed + margin) * (s - margin))
        for s, fixed in zip(negatives, fixed_negatives, strict=True)
    )
    pull = sum(
        math.exp(-gamma * max(0, 1 + margin - fixed) * (s - (1 - margin)))
        for s, fixed in zip(positives, fixed_positives, strict=True)
    )
    return math.log(1 + push * pull)


def contrastive_cosine(positives, negatives, *, positive_margin, negative_margin):
    """Wang et al. 2020 (cross-batch memory), as an average over the terms that are not 0."""
    pull = [1 - s for s in positives if s < positive_margin]
    push = [s for s in negatives if s > negative_margin]
    return sum(pull) / max(1, len(pull)) + sum(push) / max(1, len(push))


def contrastive_euclidean(positives, negatives, *, positive_margin, negative_margin):
    """Hadsell et al. 2006, eq. 4 without the factor 1/2, averaged likewise."""
    pull = [max(0, math.sqrt(2 - 2 * s) - positive_margin) ** 2 for s in positives]
    push = [max(0, negative_margin - math.sqrt(2 - 2 * s)) ** 2 for s in negatives]
    pull, push = [x for x in pull if x > 0], [x for x in push if x > 0]
    return sum(pull) / max(1, len(pull)) + sum(push) / max(1, len(push))


def triplet(positives, negatives, *, margin, mining, soft):
    """Schroff et al. 2015, eq. 2, and Hermans et al. 2017, sec. 2, on the distance 1 - s."""
    distances = [(1 - p, 1 - n) for p in positives for n in negatives]
    if mining == "hard" and distances:
        distances = [(max(d for d, _ in distances), min(d for _, d in distances))]
    if mining == "semi_hard":
        distances = [(p, n) for p, n in distances if p < n < p + margin]
    if soft:
        costs = [math.log(1 + math.exp(p - n + margin)) for p, n in distances]
    else:
        costs = [p - n + margin for p, n in distances if p - n + margin > 0]
    return sum(costs) / max(1, len(costs))


def rank_loss(positives, negatives):
    """Zhang et al. 2025, eq. 8."""
    costs = [math.log(1 + math.exp(n - p)) for p in positives for n in negatives]
    return sum(costs) / max(1, len(costs))


def score_difference(scores, targets):
    """Zhang et al. 2025, eq. 7."""
    return sum(abs(t - s) for s, t in zip(scores, targets, strict=True)) / max(1, len(scores))


def score_distillation(scores, targets, *, temperature, target_temperature):
    """Cross-entropy of the two softmaxes, less the entropy of the target."""
    wanted = [math.exp(t / target_temperature) for t in targets]
    given = [math.exp(s / temperature) for s in scores]
    cost = 0.0
    for w, g in zip(wanted, given, strict=True):
        p, q = w / sum(wanted), g / sum(given)
        cost += -p * math.log(q) + p * math.log(p)
    return cost


def nt_xent(rows, *, temperature, ids, normalised=True):
    """Chen et al. 2020, algorithm 1, over 2B rows: view 1, then view 2 of the same images."""
    if normalised:
        lengths = [math.sqrt(sum(x * x for x in row)) for row in rows]
        rows = [[x / length for x in row] for row, length in zip(rows, lengths, strict=True)]
    images, costs = len(rows) // 2, []
    for i, row in enumerate(rows):
        scores = [sum(x * y for x, y in zip(row, other, strict=True)) for other in rows]
        partner = (i + images) % (2 * images)
        others = [k for k in range(2 * images) if ids[k % images] != ids[i % images]]
        total = sum(math.exp(scores[k] / temperature) for k in [partner, *others])
        costs.append(-math.log(math.exp(scores[partner] / temperature) / total))
    return costs


def decoupled(positives, negatives, *, temperature, sigma=None, all_positives=(), weights_from=None):
    """Yeh et al. 2022, sec. 3; with sigma each positive's weight is 2 - exp / mean of exp."""
    if not positives or not negatives:
        return 0.0
    weights = [1.0] * len(positives)
    if sigma is not None:
        mean = sum(math.exp(s / sigma) for s in all_positives) / len(all_positives)
        weights = [2 - math.exp(s / sigma) / mean for s in weights_from or positives]
    pull = sum(w * s / temperature for w, s in zip(weights, positives, strict=True)) / len(positives)
    return math.log(sum(math.exp(s / temperature) for s in negatives)) - pull


def hard_negative(positives, negatives, *, temperature, tau_plus, beta):
    """Robinson et al. 2021, sec. 3; Chuang et al. 2020, eq. 7 and 8, at beta 0."""
    if not positives:
        return 0.0
    found = [math.exp(s / temperature) for s in positives]
    rest = 0.0
    if negatives:
        near = [math.exp(s / temperature) for s in negatives]
        weights = [e**beta for e in near]
        weighed = sum(w * e for w, e in zip(weights, near, strict=True)) / (sum(weights) / len(weights))
        rest = (weighed - tau_plus * len(near) * sum(found) / len(found)) / (1 - tau_plus)
        rest = max(rest, len(near) * math.exp(-1 / temperature))
    return -sum(math.log(e / (sum(found) + rest)) for e in found) / len(found)


def debiased(positives, negatives, *, temperature, tau_plus):
    """Chuang et al. 2020, eq. 7 and 8."""
    return hard_negative(positives, negatives, temperature=temperature, tau_plus=tau_plus, beta=0)


def nt_logistic(positives, negatives, *, temperature, mining="all"):
    """Chen et al. 2020, Table 2, as the mean over positives plus the mean over negatives."""
    if mining == "semi_hard":
        below = [s for s in negatives if positives and s < min(positives)]
        negatives = [max(below)] if below else []
    pull = [math.log(1 + math.exp(-s / temperature)) for s in positives]
    push = [math.log(1 + math.exp(s / temperature)) for s in negatives]
    return sum(pull) / max(1, len(pull)) + sum(push) / max(1, len(push))


def lars(
    weights, gradients, velocity, *, lr, sgd_momentum, weight_decay, trust_coefficient, form, adapts=True
):
    """One step over one flat list of weights: (weights, velocity) after it."""
    trust = 1.0
    if adapts:
        gradients = [g + weight_decay * w for w, g in zip(weights, gradients, strict=True)]
        length, slope = (math.sqrt(sum(x * x for x in xs)) for xs in (weights, gradients))
        if trust_coefficient is not None and length > 0 and slope > 0:
            trust = trust_coefficient * length / slope
    inside, outside = (lr, 1.0) if form == "simclr" else (1.0, lr)
    velocity = [sgd_momentum * v + inside * trust * g for v, g in zip(velocity, gradients, strict=True)]
    return [w - outside * v for w, v in zip(weights, velocity, strict=True)], velocity


def through(matrix, vector):
    """A linear layer without bias."""
    return [dot(row, vector) for row in matrix]


def among_keys(z, positives, negatives, *, temperature):
    """InfoNCE of a query of length 1 along z among keys, and its slope at z."""
    q = unit(z)
    scores = [[dot(q, key) for key in keys] for keys in (positives, negatives)]
    cost = info_nce(*scores, temperature=temperature)
    total = sum(math.exp(s / temperature) for s in scores[0] + scores[1])
    slope = [0.0] * len(q)
    for place, key in enumerate([*positives, *negatives]):
        weight = math.exp((scores[0] + scores[1])[place] / temperature) / total
        weight -= 1 / len(positives) if place < len(positives) else 0
        slope = [g + weight * x / temperature for g, x in zip(slope, key, strict=True)]
    along, length = dot(q, slope), math.sqrt(dot(z, z))
    return cost, [(g - x * along) / length for g, x in zip(slope, q, strict=True)]


def moved(weights, slopes, rate):
    """One plain step down the slopes."""
    return [[w - rate * g for w, g in zip(*rows, strict=True)] for rows in zip(weights, slopes, strict=True)]


def followed(key_weights, weights, momentum):
    """He et al. 2019, eq. 2."""
    return [
        [momentum * k + (1 - momentum) * w for k, w in zip(*rows, strict=True)]
        for rows in zip(key_weights, weights, strict=True)
    ]


def moco(weights, batches, *, held, capacity, rate, momentum, temperature, same_id, symmetric):
    """He et al. 2019, algorithm 1, z = Wx: (loss, W, key encoder's W, queue oldest first) after each step."""
    key_weights, queue, after = weights, list(held), []
    for view_1, view_2, ids in batches:
        key_weights = followed(key_weights, weights, momentum)
        directions = [(view_1, view_2), (view_2, view_1)] if symmetric else [(view_1, view_2)]
        slopes, costs, fresh = [[0.0] * len(row) for row in weights], [], []
        for of_queries, of_keys in directions:
            for x, other, item in zip(of_queries, of_keys, ids, strict=True):
                own = unit(through(key_weights, other))
                fresh.append((own, item))
                older = [key for key, whose in queue if whose == item]
                positives = [own, *older] if same_id == "positive" else [own]
                negatives = [key for key, whose in queue if whose != item]
                negatives += older if same_id == "negative" else []
                cost, slope = among_keys(through(weights, x), positives, negatives, temperature=temperature)
                costs.append(cost)
                share = 1 / (len(ids) * len(directions))
                slopes = [
                    [s + share * g * value for s, value in zip(row, x, strict=True)]
                    for row, g in zip(slopes, slope, strict=True)
                ]
        weights = moved(weights, slopes, rate)
        queue = (queue + fresh)[-capacity:]
        after.append((sum(costs) / len(costs), weights, key_weights, queue))
    return after


def moco_v3(weights, predictor, batches, *, rate, momentum, temperature):
    """Chen et al. 2021, algorithm 1, z = Wx, p(z) = Pz: (loss, W, P, key encoder's W) after each step."""
    key_weights, after = weights, []
    for view_1, view_2, ids in batches:
        key_weights = followed(key_weights, weights, momentum)
        slopes = [[[0.0] * len(row) for row in matrix] for matrix in (weights, predictor)]
        total = 0.0
        for of_queries, of_keys in ((view_1, view_2), (view_2, view_1)):
            keys = [unit(through(key_weights, x)) for x in of_keys]
            for x, item in zip(of_queries, ids, strict=True):
                positives = [key for key, whose in zip(keys, ids, strict=True) if whose == item]
                negatives = [key for key, whose in zip(keys, ids, strict=True) if whose != item]
                z = through(weights, x)
                cost, slope = among_keys(through(predictor, z), positives, negatives, temperature=temperature)
                share = 2 * temperature / len(ids)
                total += share * cost
                at_z = through(list(zip(*predictor, strict=True)), slope)
                for matrix, inputs, outputs in ((slopes[0], x, at_z), (slopes[1], z, slope)):
                    for row, g in zip(matrix, outputs, strict=True):
                        row[:] = [s + share * g * value for s, value in zip(row, inputs, strict=True)]
        weights, predictor = moved(weights, slopes[0], rate), moved(predictor, slopes[1], rate)
        after.append((total, weights, predictor, key_weights))
    return after


def nce(positives, negatives, *, temperature, normaliser, noise_items):
    """Wu et al. 2018, arXiv:1805.01978, eq. 4 to 7."""
    if not positives or not negatives:
        return 0.0
    noise = len(negatives) / noise_items
    found = [math.exp(s / temperature) / normaliser for s in positives]
    drawn = [math.exp(s / temperature) / normaliser for s in negatives]
    return -sum(math.log(p / (p + noise)) for p in found) / len(found) - sum(
        math.log(noise / (p + noise)) for p in drawn
    )


def unit(row):
    """Scaled to length 1."""
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def dot(row, other):
    """The score of two rows."""
    return sum(x * y for x, y in zip(row, other, strict=True))


def slopes(cost, weights, *, by=1e-5):
    """The gradient of a cost of a matrix by central differences."""
    out = []
    for row in weights:
        out.append([])
        for place, kept in enumerate(row):
            row[place] = kept + by
            above = cost(weights)
            row[place] = kept - by
            below = cost(weights)
            row[place] = kept
            out[-1].append((above - below) / (2 * by))
    return out


def descend(cost, weights, *, lr):
    """The cost and one plain step down it."""
    value, gradient = cost(weights), slopes(cost, weights)
    return value, [
        [w - lr * g for w, g in zip(row, slope, strict=True)]
        for row, slope in zip(weights, gradient, strict=True)
    ]


def linear_rows(weights, images):
    """A linear encoder's unit rows."""
    return [unit([dot(row, image) for row in weights]) for image in images]


def bank_steps(weights, bank, batches, samples, *, contrast, temperature, proximal, momentum, lr):
    """Wu et al. 2018, sec. 3: (costs, weights, bank, Z) after steps on (images, ids) batches."""
    costs, normaliser = [], None
    for (images, ids), sample in zip(batches, samples, strict=True):
        stored = [bank[i] for i in ids]
        others = [list(range(len(bank))) if contrast == "softmax" else sample for _ in ids]
        others = [[k for k in keys if k != i] for i, keys in zip(ids, others, strict=True)]
        if contrast == "nce" and normaliser is None:
            pairs = [
                (row, bank[k])
                for row, i, keys in zip(linear_rows(weights, images), ids, others, strict=True)
                for k in [i, *keys]
            ]
            normaliser = len(bank) * sum(math.exp(dot(*pair) / temperature) for pair in pairs) / len(pairs)

        def cost(weights, *, images=images, others=others, stored=stored, bank=bank, normaliser=normaliser):
            total = 0.0
            for row, own, keys in zip(linear_rows(weights, images), stored, others, strict=True):
                positives, negatives = [dot(row, own)], [dot(row, bank[k]) for k in keys]
                if contrast == "nce":
                    total += nce(
                        positives, negatives, temperature=temperature,
                        normaliser=normaliser, noise_items=len(bank),
                    )  # fmt: skip
                else:
                    total += info_nce(positives, negatives, temperature=temperature)
                total += proximal * sum((x - y) ** 2 for x, y in zip(row, own, strict=True))
            return total / len(images)

        rows = linear_rows(weights, images)
        value, weights = descend(cost, weights, lr=lr)
        costs.append(value)
        for i, row in zip(ids, rows, strict=True):
            mixed = [momentum * old + (1 - momentum) * new for old, new in zip(bank[i], row, strict=True)]
            bank = [*bank[:i], unit(mixed), *bank[i + 1 :]]
    return costs, weights, bank, normaliser


def xbm_steps(weights, batches, *, capacity, warm_up, weight, temperature, lr):
    """Wang et al. 2020, algorithm 1: (costs, weights, memory) after steps on (images, ids, labels) batches.

    The memory is a list of [row, label, place in its batch or None], newest last.
    """
    costs, memory = [], []
    for step, (images, _, labels) in enumerate(batches):
        rows = linear_rows(weights, images)
        if step >= warm_up:
            memory = [[row, label, None] for row, label, _ in memory]
            memory += [
                [row, label, place] for place, (row, label) in enumerate(zip(rows, labels, strict=True))
            ]
            memory = memory[-capacity:]

        def cost(weights, *, images=images, labels=labels, memory=memory):
            rows = linear_rows(weights, images)
            batch = [[row, label, place] for place, (row, label) in enumerate(zip(rows, labels, strict=True))]
            total = 0.0
            for keys, share in ((batch, 1.0), (memory, weight)):
                for place, row in enumerate(rows):
                    others = [(dot(row, key), label) for key, label, at in keys if at != place]
                    positives = [s for s, label in others if label == labels[place]]
                    negatives = [s for s, label in others if label != labels[place]]
                    total += share * info_nce(positives, negatives, temperature=temperature) / len(rows)
            return total

        value, weights = descend(cost, weights, lr=lr)
        costs.append(value)
    return costs, weights, memory


def end_to_end_steps(weights, batches, *, symmetric, temperature, lr):
    """He et al. 2020, sec. 4.1; symmetric: Radford et al. 2021, fig. 3: (costs, weights) after steps.

    A row of weights is that of the query encoder and then of the key encoder, or of one that both share;
    batches are (queries, keys, ids).
    """
    costs = []
    for queries, keys, ids in batches:

        def cost(weights, *, queries=queries, keys=keys, ids=ids):
            width = len(queries[0])
            is_shared = all(len(row) == width for row in weights) and len(keys[0]) == width
            q = linear_rows([row[:width] for row in weights], queries)
            k = linear_rows([row if is_shared else row[width:] for row in weights], keys)
            directions = [(q, k), (k, q)] if symmetric else [(q, k)]
            total = 0.0
            for asking, asked in directions:
                for row, own in zip(asking, ids, strict=True):
                    scores = [(dot(row, key), item == own) for key, item in zip(asked, ids, strict=True)]
                    positives, negatives = (
                        [s for s, same in scores if same is wanted] for wanted in (True, False)
                    )
                    total += info_nce(positives, negatives, temperature=temperature)
            return total / len(queries) / len(directions)

        value, weights = descend(cost, weights, lr=lr)
        costs.append(value)
    return costs, weights
