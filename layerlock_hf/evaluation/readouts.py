"""Readouts that a sweep can train: that of 4DS and LayerLock, the attentive probes of V-JEPA, and a linear one.

All are built as `AttentionReadout` is, from a configuration, the number of queries and that of the outputs of each,
and have its two verbs. B batch, t steps of time, S tokens of one step, D width of the encoder, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler, VJEPA2PreTrainedModel

from ..models import AttentionReadout, LayerLockReadoutConfig
from ..models.modeling_layerlock import start_weights


class AttentiveProbe(VJEPA2PreTrainedModel):
    """The classifier of V-JEPA: self-attention among the tokens, then one learned query attends to them all.

    The query's block has no projection after its attention, and a residual around it. Layers, how they start and the
    names of their weights are those of `VJEPA2ForVideoClassification`. V-JEPA reads what the final norm of its encoder
    gives; here tokens of any depth are normalised instead, without parameters.

    Args:
        hidden_size: width D of the encoder, and of the probe.
        num_attention_heads: heads of all blocks.
        num_self_attention_layers: blocks before the query's.
        num_outputs: classes.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int, num_self_attention_layers: int, num_outputs: int):
        super().__init__(
            VJEPA2Config(
                hidden_size=hidden_size,
                num_attention_heads=num_attention_heads,
                num_pooler_layers=num_self_attention_layers,
            )
        )
        self.pooler = VJEPA2AttentivePooler(self.config)
        self.classifier = nn.Linear(hidden_size, num_outputs)
        self.post_init()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, t, S, D) -> (B, 1, O)"""
        return self.read(self.normalize(features))

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Each token of mean 0 and variance 1: (B, t, S, D) -> (B, t * S, D)"""
        return F.layer_norm(features, features.shape[-1:], eps=self.config.layer_norm_eps).flatten(1, 2)

    def read(self, normalized: torch.Tensor) -> torch.Tensor:
        """What follows `normalize`: (B, N, D) -> (B, 1, O)"""
        return self.classifier(self.pooler(normalized)).unsqueeze(1)


class LinearReadout(nn.Module):
    """A linear layer on the mean over all tokens, which is brought to mean 0 and variance 1 over its D entries.

    The linear probe of BWSSL standardises every entry over the training videos instead (scikit-learn's StandardScaler)
    and finds the minimum of its L2-regularised loss (LogisticRegression); this one is trained as the other readouts
    are, on augmented clips if these are. `probes.linear_accuracy` comes nearer to that protocol.

    Args:
        hidden_size: width D of the encoder.
        num_outputs: classes.
    """

    def __init__(self, hidden_size: int, num_outputs: int):
        super().__init__()
        self.head = nn.Linear(hidden_size, num_outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, t, S, D) -> (B, 1, O)"""
        return self.read(self.normalize(features))

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """(B, t, S, D) -> (B, D)"""
        return F.layer_norm(features.mean(dim=(1, 2)), features.shape[-1:])

    def read(self, normalized: torch.Tensor) -> torch.Tensor:
        """What follows `normalize`: (B, D) -> (B, 1, O)"""
        return self.head(normalized).unsqueeze(1)


def attention(config: LayerLockReadoutConfig, num_queries: int, num_outputs: int) -> AttentionReadout:
    """That of 4DS and LayerLock. It starts as in `LayerLockViTForVideoClassification`, not as PyTorch's layers do."""
    readout = AttentionReadout(config, num_queries, num_outputs)
    return readout.apply(lambda module: start_weights(module, config.initializer_range))


def attentive_probe(config: LayerLockReadoutConfig, num_queries: int, num_outputs: int) -> AttentiveProbe:
    """V-JEPA's, without self-attention, with as many heads as the encoder; `readout_num_attention_heads` if the
    configuration does not tell these."""
    _refuse_dense("attentive_probe", num_queries)
    encoder = getattr(config, "encoder_config", config)
    num_heads = getattr(encoder, "num_attention_heads", config.readout_num_attention_heads)
    return AttentiveProbe(config.hidden_size, num_heads, 0, num_outputs)


def attentive_probe_v2(config: LayerLockReadoutConfig, num_queries: int, num_outputs: int) -> AttentiveProbe:
    """V-JEPA 2's, with three blocks of self-attention and `readout_num_attention_heads` heads (16 in V-JEPA 2)."""
    _refuse_dense("attentive_probe_v2", num_queries)
    return AttentiveProbe(config.hidden_size, config.readout_num_attention_heads, 3, num_outputs)


def linear(config: LayerLockReadoutConfig, num_queries: int, num_outputs: int) -> LinearReadout:
    """Neither attention nor hidden layers."""
    _refuse_dense("linear", num_queries)
    return LinearReadout(config.hidden_size, num_outputs)


def _refuse_dense(name: str, num_queries: int):
    if num_queries != 1:
        raise ValueError(
            f"readout={name} gives one answer per clip, but this task needs {num_queries}: choose readout=attention"
        )


READOUTS = {
    "attention": attention,
    "attentive_probe": attentive_probe,
    "attentive_probe_v2": attentive_probe_v2,
    "linear": linear,
}
