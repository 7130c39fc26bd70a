"""Which single weights to keep: oViT and its baselines, unstructured, N:M and in tiles.

from sparsity.oneshot import Sparsify, sparsify
sparse = sparsify(model, batches, loss, Sparsify(sparsity=0.75))
"""
