"""The error that a caller can catch to fall back to the vanilla encoder."""


class UnsupportedError(ValueError):
    """The vanilla encoder computes this, and the fused encoder would not compute it exactly.

    Raised for a model (its architecture, a setting, an adapter, a hook) and for a call (a causal mask, attentions,
    hidden states, training). The message names what is in the way and what to do about it. It is a ValueError;
    arguments that are wrong for any encoder raise a plain ValueError.
    """
