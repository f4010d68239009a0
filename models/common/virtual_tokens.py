"""Trainable inputs of a frozen model: virtual tokens, and the rows of new tokens. Shape: D hidden size."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.model.architecture import Model


def random_words(model: Model, tokenizer: Any, count: int, rng: random.Random) -> Tensor:
    """(count, D) float32: embeddings of random tokens of the vocabulary, which virtual tokens begin with."""
    words = sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    vectors = model.get_input_embeddings().get_parameter("weight").detach()
    return vectors[rng.choices(words, k=count)].float()


class NewRows(nn.Module):
    """Trainable offsets of a few tokens' rows, whose matrices are frozen.

    The offsets are added to the rows of the embedding and, since the tokens are also generated, of the head. They start
    at 0. If embedding and head are tied, they share one parameter.

    Args:
        model: Its embedding has rows for the tokens already.
        first: Id of the first of the tokens, which follow each other.
        count: How many there are.
    """

    def __init__(self, model: Model, first: int, count: int):
        super().__init__()
        self.first, self.count = first, count
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        matrix = embedding.get_parameter("weight")
        self.read = nn.Parameter(torch.zeros(count, matrix.shape[1], device=matrix.device))
        is_tied = head.weight is matrix
        self.written = self.read if is_tied else nn.Parameter(torch.zeros_like(self.read))
        for module in model.modules():  # encoder and decoder have an embedding each, with one matrix
            if isinstance(module, nn.Embedding) and module.weight is matrix:
                module.register_forward_hook(self._embed)
        head.register_forward_hook(self._score)

    def _embed(self, embedding: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        place = args[0] - self.first
        place = torch.where((place < 0) | (place >= self.count), self.count, place)
        return output + F.embedding(place, F.pad(self.read, (0, 0, 0, 1))).to(output.dtype)  # 0 for all other tokens

    def _score(self, head: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        before, own, after = output.tensor_split((self.first, self.first + self.count), dim=-1)
        return torch.cat([before, own + args[0] @ self.written.to(args[0].dtype).T, after], dim=-1)
