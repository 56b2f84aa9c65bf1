"""The consistency loss: agree with a teacher where it is confident."""

from torch import Tensor
from torch.nn import functional

from microseg.errors import ModelError

__all__ = ["consistency_loss"]


def consistency_loss(student_logits: Tensor, teacher_probabilities: Tensor, threshold: float) -> tuple[Tensor, float]:
    """Cross entropy against the teacher's hard pseudo-labels, on the pixels where the teacher is confident.

    A pixel counts when the teacher's highest probability reaches the threshold. The sum is divided by the number of
    all pixels, so the loss grows with the part of the images that the teacher is sure of.

    Args:
        student_logits: Scores of the student.
        teacher_probabilities: Probabilities of the teacher; no gradient flows into them.
        threshold: Least confidence, 0..1.

    Shape:
        (B, K, H, W) twice → () and a number

    Returns:
        The loss (0, with a gradient of 0, when no pixel counts) and the fraction of pixels that counted.

    Raises:
        ModelError: The shapes differ, or the threshold is outside 0..1.

    Reference:
        Sohn et al., "FixMatch", NeurIPS 2020; Tarvainen & Valpola, "Mean teachers", NeurIPS 2017.
    """
    if student_logits.ndim != 4 or student_logits.shape != teacher_probabilities.shape:
        raise ModelError(
            f"expected student and teacher of one shape (B, K, H, W), got {tuple(student_logits.shape)} "
            f"and {tuple(teacher_probabilities.shape)}"
        )
    if not 0 <= threshold <= 1:
        raise ModelError(f"expected a threshold in 0..1, got {threshold}; it is a probability")
    confidence, labels = teacher_probabilities.max(dim=1)  # (B, H, W) each
    used = (confidence >= threshold).to(student_logits.dtype)  # (B, H, W)
    loss = functional.cross_entropy(student_logits, labels, reduction="none")  # (B, H, W)
    return (loss * used).mean(), float(used.mean())
