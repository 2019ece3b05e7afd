"""The inner loops of k-sparse training that torch does not have, compiled by numba (notebook 06).

With k of n features active, only the encoder has to be a dense product. Everything else touches
`pairs` (sample, feature), k a sample, and is bound by memory, so these loops read each row once and
do all that can be done while it is in cache:

===========  ==================================================================================
`top_k`      k largest pre-activations of each row, without sorting: maxima of strided blocks
             bound the k-th largest from below, which leaves little more than k candidates
`above`      all pre-activations over a threshold, by the same blocks (BatchTopK)
`take_back`  errors of the reconstruction, and their product with each active direction
`by_feature` a counting sort of the pairs, so that each feature's gradient is one sum
`update`     projection, Adam, renormalisation and the bfloat16 copies of features that were active
===========  ==================================================================================

The sums of rows themselves, k rows a sample or the samples of a feature, are torch's embedding bag.

Rows are float32, or bfloat16 in a *packed* layout: one uint32 holds element c in its lower half and
element c + d/2 in its upper half. Either half becomes a float32 by one shift or mask, and both
run over contiguous floats. Neither a matrix product nor a sum of rows cares in which order columns
stand, so torch reads the same memory as bfloat16 of shape (rows, d), without any copy.

Each loop runs over the rows `first` to `last` of its outputs and touches no others: the result does
not depend on how many threads share the work.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.extending import overload

# Sums may be reordered and fused, which vector units need; NaN and infinity stay what they are.
_options = {
    "nogil": True, "cache": True, "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}  # fmt: skip
_jit = njit(**_options)
_part = njit(**_options, _nrt=False)

# Two habits of these loops, without which numba makes slow code of them. Rows are reached by two
# indices, not as slices, whose reference counts are atomic. Sums of indices are unsigned, or they
# might be negative and mean something else.
_u = np.uint64

BLOCK = 32  # rows that `update` goes through matrix by matrix


def _widen(x):  # a float32 from itself, or from the bits of a bfloat16 in a uint16
    raise NotImplementedError


def _lower(x):  # the float32 in the lower half of a packed word; a float32 is itself
    raise NotImplementedError


def _upper(x):  # and in the upper half
    raise NotImplementedError


def _store(out, r, values, v):  # out[r] = values[v], rounded where `out` is packed
    raise NotImplementedError


@overload(_widen)
def _widen_of(x):
    if x == types.uint16:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@overload(_lower)
def _lower_of(x):
    if x == types.uint32:
        return lambda x: np.uint32(np.uint32(x) << np.uint32(16)).view(np.float32)
    return lambda x: x


@overload(_upper)
def _upper_of(x):
    if x == types.uint32:
        return lambda x: np.uint32(np.uint32(x) & np.uint32(0xFFFF0000)).view(np.float32)
    return lambda x: x


@_part
def _rounded(x):
    """The bfloat16 nearest to a float32, ties to even, as the lower half of a uint32."""
    bits = np.float32(x).view(np.uint32)
    even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(np.uint32(bits + np.uint32(0x7FFF) + even) >> np.uint32(16))


@overload(_store)
def _store_of(out, r, values, v):
    if out.dtype == types.uint32:

        def store(out, r, values, v):
            half = _u(out.shape[1])
            for c in range(half):
                upper = np.uint32(_rounded(values[v, c + half]) << np.uint32(16))
                out[r, c] = np.uint32(_rounded(values[v, c]) | upper)
    else:

        def store(out, r, values, v):
            for c in range(out.shape[1]):
                out[r, c] = values[v, c]

    return store


# -- packing -------------------------------------------------------------------------------------


@_jit
def pack(rows, out, first, last):
    """Copy float32 rows (r, d) into packed rows (r, d // 2)."""
    for r in range(first, last):
        _store(out, r, rows, r)


@_jit
def prepare(x, scale, centre, out, first, last):
    """What the encoder reads: ``x * scale - centre``, (B, d), packed if `out` is."""
    row = np.empty((1, x.shape[1]), np.float32)
    for s in range(first, last):
        for c in range(x.shape[1]):
            row[0, c] = x[s, c] * scale - centre[c]
        _store(out, s, row, 0)


# -- selection -----------------------------------------------------------------------------------


@_part
def _count(values, n, threshold):
    count = np.int32(0)
    for j in range(n):
        count += np.int32(values[j] >= threshold)
    return count


@_part
def _threshold(values, n, k, slack, guess):
    """A positive integer that k to k + slack of the values reach, as nearly as ties allow.

    1 where fewer than k are positive. Searched from a guess, in growing steps and then by
    bisection: the row before was much alike.
    """
    low, high = np.int64(1), np.int64(0x7FFFFFFF)
    at, step = min(max(np.int64(guess), low + 1), high - 1), np.int64(1 << 19)
    while high - low > 1:
        count = _count(values, n, np.int32(at))
        if count < k:
            high = at
            at -= step
        else:
            low = at
            if count <= k + slack:
                break
            at += step
        step *= 2
        if not low < at < high:
            at = (low + high) // 2
            step = high
    return np.int32(low)


@_part
def _block_maxima(pre, s, bias, maxima):
    """maxima[j] becomes the largest of row s at j, j + w, j + 2 w, …; at least 0."""
    n, w = pre.shape[1], maxima.shape[0]
    for j in range(w):
        maxima[j] = 0
    for first in range(0, n, w):
        for j in range(_u(min(w, n - first))):
            i = _u(first) + j
            bits = np.float32(_widen(pre[s, i]) + bias[i]).view(np.int32)
            maxima[j] = max(maxima[j], bits)


@_part
def _candidates(pre, s, bias, maxima, threshold, blocks, where, bits):
    """Collect what reaches the threshold; `where` and `bits` have room for n + 1 entries."""
    n, w = _u(pre.shape[1]), _u(maxima.shape[0])
    n_blocks = _u(0)
    for j in range(w):  # without branches, which a processor cannot foresee here
        blocks[n_blocks] = j
        n_blocks += _u(maxima[j] >= threshold)
    found = _u(0)
    for b in range(n_blocks):
        i = _u(blocks[b])
        while i < n:  # not a range, which would divide to know its length
            value = np.float32(_widen(pre[s, i]) + bias[i]).view(np.int32)
            where[found], bits[found] = i, value
            found += _u(value >= threshold)
            i += w
    return np.int64(found)


@_jit
def top_k(pre, bias, k, n_blocks, first, last, offset, index, value):
    """The k largest of ``pre[s] + bias`` that are positive; exact, ties in a fixed order.

    Parameters
    ----------
    pre : array of shape (rows, n), uint16 (the bits of bfloat16) or float32
    bias : array of shape (n,), float32
    n_blocks : int
        At least k, at most n: about ``sqrt(k * n)`` is fastest.
    offset : int
        Row s of `pre` is row ``offset + s`` of the outputs.
    index, value : arrays of shape (B, k), int32 and float32
        Unused places get index 0 and value 0.
    """
    n = pre.shape[1]
    maxima, blocks = np.empty(n_blocks, np.int32), np.empty(n_blocks + 1, np.int32)
    where, bits = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    coarse, fine = np.int32(0), np.int32(0)
    for s in range(first, last):
        _block_maxima(pre, s, bias, maxima)
        coarse = _threshold(maxima, n_blocks, k, k // 4, coarse)
        found = _candidates(pre, s, bias, maxima, coarse, blocks, where, bits)
        fine = _threshold(bits, found, k, 0, fine)
        at = offset + s
        kept = 0
        for j in range(found):  # more than k reach the threshold only where values are equal
            if bits[j] > fine:
                index[at, kept], value[at, kept] = where[j], np.int32(bits[j]).view(np.float32)
                kept += 1
        for j in range(found):
            if bits[j] == fine and kept < k:
                index[at, kept], value[at, kept] = where[j], np.int32(bits[j]).view(np.float32)
                kept += 1
        for j in range(kept, k):
            index[at, j], value[at, j] = 0, 0.0


@_jit
def above(pre, bias, threshold, n_blocks, first, last, count, index, value):
    """All of ``pre[s] + bias`` that reach a positive threshold.

    Parameters
    ----------
    pre, bias, n_blocks : see `top_k`
    threshold : float32
    count : array of shape (rows,), int64
        Set to the number found in each row.
    index, value : arrays of shape (capacity,), int32 and float32
        Filled row after row as far as they reach.

    Returns
    -------
    int
        How many were found. More than the capacity: make room and call again.
    """
    n = pre.shape[1]
    maxima, blocks = np.empty(n_blocks, np.int32), np.empty(n_blocks + 1, np.int32)
    where, bits = np.empty(n + 1, np.int32), np.empty(n + 1, np.int32)
    least = max(np.float32(threshold).view(np.int32), np.int32(1))
    total = 0
    for s in range(first, last):
        _block_maxima(pre, s, bias, maxima)
        found = _candidates(pre, s, bias, maxima, least, blocks, where, bits)
        count[s] = found
        if total + found <= index.shape[0]:
            for j in range(found):
                index[total + j] = where[j]
                value[total + j] = np.int32(bits[j]).view(np.float32)
        total += found
    return total


@_jit
def keep_largest(count, index, value, keep):
    """Leave only the `keep` largest of all pairs, in place; ties go to the earlier row.

    Returns the smallest value kept.
    """
    n = 0
    for s in range(count.shape[0]):
        n += count[s]
    bits = value[:n].view(np.int32)
    least = _threshold(bits, n, keep, 0, np.int32(0))
    ties = keep
    for i in range(n):
        ties -= np.int64(bits[i] > least)
    start = kept = 0
    smallest = np.int32(0x7FFFFFFF)
    for s in range(count.shape[0]):
        stop, before = start + count[s], kept
        for i in range(start, stop):
            tie = bits[i] == least
            if bits[i] > least or (tie and ties > 0):
                ties -= np.int64(tie)
                smallest = min(smallest, bits[i])
                index[kept], value[kept] = index[i], value[i]
                kept += 1
        count[s] = kept - before
        start = stop
    return np.int32(smallest).view(np.float32) if kept else np.float32(0)


# -- the sparse half of the forward and backward pass ----------------------------------------------


@_jit
def by_group(start, index, value, ends, bags):
    """Order each sample's pairs by the group of their feature, in place (Matryoshka).

    Parameters
    ----------
    start : array of shape (B + 1,), int32
        Sample s has the pairs ``start[s]`` up to ``start[s + 1]``.
    index, value : arrays of shape (pairs,), int32 and float32
    ends : array of shape (G,), int64
        Where each prefix of the dictionary ends; the last is n.
    bags : array of shape (B * G + 1,), int32
        Set so that group g of sample s has the pairs ``bags[s * G + g]`` up to the next entry.
    """
    groups = ends.shape[0]
    most = 0
    for s in range(start.shape[0] - 1):
        most = max(most, start[s + 1] - start[s])
    kept_index, kept_value = np.empty(most, np.int32), np.empty(most, np.float32)
    for s in range(start.shape[0] - 1):
        n = 0
        for g in range(groups):
            bags[s * groups + g] = start[s] + n
            for j in range(start[s], start[s + 1]):
                if (g == 0 or index[j] >= ends[g - 1]) and index[j] < ends[g]:
                    kept_index[n], kept_value[n] = index[j], value[j]
                    n += 1
        for j in range(n):
            index[start[s] + j], value[start[s] + j] = kept_index[j], kept_value[j]
    bags[bags.shape[0] - 1] = start[start.shape[0] - 1]


@_part
def _products(vectors, r, rows, which, start, stop, out):
    """out[j] = vectors[r] · rows[which[j]], start ≤ j < stop; four rows a sweep."""
    half = _u(vectors.shape[1] // 2)
    shift = _u(rows.shape[1]) - half  # packed rows hold both halves in the same word
    for j in range(start, stop, 4):
        j1, j2, j3 = min(j + 1, stop - 1), min(j + 2, stop - 1), min(j + 3, stop - 1)
        r0, r1, r2, r3 = _u(which[j]), _u(which[j1]), _u(which[j2]), _u(which[j3])
        s0 = s1 = s2 = s3 = np.float32(0)
        for c in range(half):
            a, b, e = vectors[r, c], vectors[r, c + half], c + shift
            s0 += a * _lower(rows[r0, c]) + b * _upper(rows[r0, e])
            s1 += a * _lower(rows[r1, c]) + b * _upper(rows[r1, e])
            s2 += a * _lower(rows[r2, c]) + b * _upper(rows[r2, e])
            s3 += a * _lower(rows[r3, c]) + b * _upper(rows[r3, e])
        out[j3], out[j2], out[j1], out[j] = s3, s2, s1, s0  # in this order: repeats agree


@_jit
def take_back(x, scale, bias, said, offset, rows, bags, index, groups, first, last,
              errors, slope, loss, total):  # fmt: skip
    """Errors of the reconstruction, and what they say to each active feature.

    With G prefixes of the dictionary (Matryoshka; G = 1 otherwise) there are G reconstructions
    and the loss is their mean.

    Parameters
    ----------
    x : array of shape (B, d), float32
    scale : float32
        The target is ``x * scale``.
    bias : array of shape (d,), float32
        b_dec.
    said : array of shape (rows * G, d) or packed
        What each group of features adds to the reconstruction of sample ``offset + row``.
    rows : array of shape (n, d) or packed
        Decoder directions.
    bags, index : see `by_group`
    groups : int
        G.
    errors : array of shape (B * G, d) or packed
        Set to half the gradient of the loss by what group g adds to sample s, at s * G + g:
        for G = 1 reconstruction minus target.
    slope : array of shape (pairs,), float32
        Set to half the gradient of the loss by each value.
    loss : array of shape (B, 2), float32
        Set to the squared error, mean over prefixes, and of the whole dictionary.
    total : array of shape (d,), float32
        The errors of group 0 are added to it: half the gradient by b_dec.
    """
    d = x.shape[1]
    half = _u(d // 2)
    shift = _u(said.shape[1]) - half
    error = np.empty((groups, d), np.float32)
    share = np.float32(1 / groups)
    for s in range(first, last):
        mean = square = np.float32(0)
        for g in range(groups):
            r = (s - offset) * groups + g
            square = np.float32(0)
            for c in range(half):
                if g == 0:
                    low = bias[c] - x[s, c] * scale
                    high = bias[c + half] - x[s, c + half] * scale
                else:
                    low, high = error[g - 1, c], error[g - 1, c + half]
                low += _lower(said[r, c])
                high += _upper(said[r, c + shift])
                error[g, c], error[g, c + half] = low, high
                square += low * low + high * high
            mean += share * square
        loss[s, 0], loss[s, 1] = mean, square
        for g in range(groups - 1, -1, -1):  # group g enters the reconstructions g, g + 1, …
            if groups > 1:
                for c in range(d):
                    error[g, c] *= share
                    if g < groups - 1:
                        error[g, c] += error[g + 1, c]
            r = s * groups + g
            _store(errors, r, error, g)
            _products(error, g, rows, index, bags[r], bags[r + 1], slope)
        for c in range(d):
            total[c] += error[0, c]


@_jit
def by_feature(bags, index, value, slope, begin, row, feature_value, feature_slope):
    """Sort the pairs by feature; pairs of value 0 are left out.

    Parameters
    ----------
    bags, index, value, slope : see `by_group` and `take_back`
    begin : array of shape (n + 1,), int32
        Set so that feature f has the sorted pairs ``begin[f]`` up to ``begin[f + 1]``.
    row : array of shape (pairs,), int32
        Set to the bag of each sorted pair: its sample, where there is one group.
    feature_value, feature_slope : arrays of shape (pairs,), float32
    """
    begin[:] = 0
    for j in range(index.shape[0]):
        begin[index[j] + 1] += np.int32(value[j] > 0)
    for f in range(begin.shape[0] - 1):
        begin[f + 1] += begin[f]
    place = begin.copy()
    for r in range(bags.shape[0] - 1):
        for j in range(bags[r], bags[r + 1]):
            if value[j] > 0:
                at = place[index[j]]
                row[at], feature_value[at], feature_slope[at] = r, value[j], slope[j]
                place[index[j]] = at + 1


# -- the update ------------------------------------------------------------------------------------


@_jit
def add_rows(sums, which, rows, scale):
    """sums[which[i]] += rows[i] * scale, float32 rows onto packed or float32 ones."""
    half = _u(rows.shape[1] // 2)
    shift = _u(sums.shape[1]) - half
    row = np.empty((1, rows.shape[1]), np.float32)
    for i in range(which.shape[0]):
        r = which[i]
        for c in range(half):
            row[0, c] = _lower(sums[r, c]) + rows[i, c] * scale
            row[0, c + half] = _upper(sums[r, c + shift]) + rows[i, c + half] * scale
        _store(sums, r, row, 0)


@_part
def _load(rows, r, scale, out):
    """out[0] = rows[r] * scale, as float32."""
    half = _u(out.shape[1] // 2)
    shift = _u(rows.shape[1]) - half
    for c in range(half):
        out[0, c] = _lower(rows[r, c]) * scale
        out[0, c + half] = _upper(rows[r, c + shift]) * scale


@_part
def _adam(weights, f, gradient, along, moment1, moment2, keep, beta1, beta2, rate, correction, eps):
    """Adam on row f; the gradient is ``gradient[0] - weights[f] * along``.

    `keep` is beta2 to the number of steps since the row was last here. Returns the row's square.
    """
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    square = np.float32(0)
    if moment1.shape[0] == 0:  # beta1 = 0: the first moment is the gradient itself
        for c in range(weights.shape[1]):
            w = weights[f, c]
            g = gradient[0, c] - w * along
            v = moment2[f, c] * keep + rest2 * g * g
            w -= rate * g / (np.sqrt(v) * correction + eps)
            moment2[f, c], weights[f, c] = v, w
            square += w * w
    else:
        for c in range(weights.shape[1]):
            w = weights[f, c]
            g = gradient[0, c] - w * along
            v = moment2[f, c] * keep + rest2 * g * g
            m = moment1[f, c] * beta1 + rest1 * g
            w -= rate * m / (np.sqrt(v) * correction + eps)
            moment1[f, c], moment2[f, c], weights[f, c] = m, v, w
            square += w * w
    return square


@_jit
def update(
    first, last, begin, value, slope, of_encoder, of_decoder, scale,
    encoder, decoder, bias, encoder_copy, decoder_copy, m_encoder, m_decoder, m_bias,
    v_encoder, v_decoder, v_bias, stepped, extra, extra_bias,
    step, beta1, beta2, rate, correction, eps, unit_norm, back,
):  # fmt: skip
    """Adam step of the features `first` to `last`.

    With beta1 = 0 a feature without gradient does not move, and its second moment only decays: it
    is left alone and the decay made up for when it is next active, which is the same update. With
    beta1 > 0 every row moves at every step.

    Parameters
    ----------
    begin, value, slope : from `by_feature`
    of_encoder, of_decoder : arrays of shape (last - first, d) or packed
        Half the gradients, over B / 2.
    scale : float32
        What makes gradients of them, 2 / B.
    encoder, decoder, bias : arrays of shape (n, d), (n, d), (n,), float32
        Weights, changed in place.
    encoder_copy, decoder_copy : arrays of shape (n, d // 2), packed; or (0, 0) for none
    m_*, v_* : Adam's moments, as the weights; m_* of no rows where beta1 is 0
    stepped : array of shape (n,), int64
        The step that each feature's moments are of.
    extra, extra_bias : arrays of shape (n,), bool and float32
        Features with gradients beside those of their pairs (`add_rows`). No entries: none.
    rate, correction : float32
        Learning rate over the first moment's bias correction; inverse root of the second's.
    unit_norm : bool
        Keep decoder rows at length 1, and gradients at right angles to them.
    back : array of shape (d,), float32, or of no entries
        The gradient by the encoder's input, summed over samples, is added to it.
    """
    d = encoder.shape[1]
    momentum = m_encoder.shape[0] > 0
    zero = np.float32(0)
    rest1, rest2 = np.float32(1) - beta1, np.float32(1) - beta2
    gradient = np.empty((1, d), np.float32)
    moving, keep = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.float32)
    shrink = np.empty(BLOCK, np.float32)
    at = first
    while at < last:
        # A few rows at a time, one matrix after the other: memory is read in long runs.
        n = 0
        while at < last and n < BLOCK:
            more = extra.shape[0] > 0 and extra[at]
            if begin[at] < begin[at + 1] or more or momentum:
                moving[n] = at
                keep[n] = np.float32(beta2 ** np.float64(step - stepped[at]))
                stepped[at] = step
                n += 1
            at += 1
        for i in range(n):
            f = moving[i]
            to_bias = zero
            for j in range(begin[f], begin[f + 1]):
                to_bias += slope[j] * scale
            if back.shape[0]:
                for c in range(d):
                    back[c] += to_bias * encoder[f, c]
            if extra.shape[0]:
                to_bias += extra_bias[f]
            v_bias[f] = v_bias[f] * keep[i] + rest2 * to_bias * to_bias
            if momentum:
                to_bias = m_bias[f] * beta1 + rest1 * to_bias
                m_bias[f] = to_bias
            bias[f] -= rate * to_bias / (np.sqrt(v_bias[f]) * correction + eps)
            _load(of_encoder, f - first, scale, gradient)
            _adam(encoder, f, gradient, zero, m_encoder, v_encoder,
                  keep[i], beta1, beta2, rate, correction, eps)  # fmt: skip
        if encoder_copy.shape[0]:
            for i in range(n):
                _store(encoder_copy, moving[i], encoder, moving[i])
        for i in range(n):
            f = moving[i]
            _load(of_decoder, f - first, scale, gradient)
            along = zero
            if unit_norm:
                for c in range(d):
                    along += gradient[0, c] * decoder[f, c]
            square = _adam(decoder, f, gradient, along, m_decoder, v_decoder,
                           keep[i], beta1, beta2, rate, correction, eps)  # fmt: skip
            shrink[i] = np.float32(1) / np.sqrt(square)
        if unit_norm:
            for i in range(n):
                f, by = moving[i], shrink[i]
                for c in range(d):
                    decoder[f, c] *= by
        if decoder_copy.shape[0]:
            for i in range(n):
                _store(decoder_copy, moving[i], decoder, moving[i])
