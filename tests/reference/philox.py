# SPDX-License-Identifier: MIT
"""The random numbers that lpo documents, drawn anew: Philox4x32-10 (Salmon et al. 2011), Box and Muller's normals, and
unbiased integers by Lemire's method."""

import numpy as np


def words(counters, key):
    """Four 32-bit words for each of the counters [n, 4] under key (k0, k1)."""
    c = counters.astype(np.uint64)
    k = list(key)
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        product0, product1 = np.uint64(0xD2511F53) * c[:, 0], np.uint64(0xCD9E8D57) * c[:, 2]
        c = np.stack([(product1 >> np.uint64(32)) ^ c[:, 1] ^ np.uint64(k[0]), product1 & mask,
                      (product0 >> np.uint64(32)) ^ c[:, 3] ^ np.uint64(k[1]), product0 & mask], axis=1)
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def _field(seed, operation, step, first, count):
    """Words of blocks first, first + 1, ...: the counter is (block, 0, operation, step), the key is the seed."""
    counters = np.zeros((count, 4), np.uint32)
    counters[:, 0], counters[:, 2], counters[:, 3] = np.arange(first, first + count), operation, step
    return words(counters, (seed & 0xFFFFFFFF, seed >> 32))


def normals(seed, operation, step, *shape):
    """Standard normals of a field, in float64."""
    count = int(np.prod(shape))
    four = _field(seed, operation, step, 0, -(-count // 4)).astype(np.float64)
    radius = np.sqrt(-2 * np.log((four[:, ::2] + 0.5) / 2.0 ** 32))
    angle = four[:, 1::2] * (2 * np.pi / 2.0 ** 32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(-1)[:count].reshape(shape)


class Stream:
    """Integers drawn one after the other."""

    def __init__(self, seed, operation, step):
        self.field, self.position = (seed, operation, step), 0

    def word(self):
        self.position += 1
        return int(_field(*self.field, (self.position - 1) // 4, 1)[0, (self.position - 1) % 4])

    def below(self, n):
        product = self.word() * n
        while product & 0xFFFFFFFF < 2 ** 32 % n:
            product = self.word() * n
        return product >> 32

    def shuffled(self, count):
        order = list(range(count))
        for i in range(count, 1, -1):
            j = self.below(i)
            order[i - 1], order[j] = order[j], order[i - 1]
        return order
