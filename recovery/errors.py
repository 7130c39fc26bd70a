"""What goes wrong in recovery, beside the data (`recovery.data.DataError`)."""

from vit.errors import VitfitError


class TrainingError(VitfitError, ValueError):
    """A recipe, or training with it, that cannot be; the message says what was given and what to do."""


class FailedStepError(TrainingError):
    """A step that could not be done: what happened, at which step, and whose weights the model holds now."""

    def __init__(self, problem: str, advice: str, step: int, held: str) -> None:
        super().__init__(f"{problem} at step {step}; the model holds {held}; {advice}")
        self.problem, self.advice, self.step = problem, advice, step

    def holding(self, held: str) -> "FailedStepError":
        """The same where the model was given other weights since."""
        return FailedStepError(self.problem, self.advice, self.step, held)
