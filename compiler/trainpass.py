"""What passes share that train something of a program end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from drawplate.aims import BETA, Aim, pairs_for, refuse_no_aim, samples_for
from drawplate.calibration import Calibration
from drawplate.costs import refuse_no_logits
from drawplate.digest import digest, program_digest
from drawplate.errors import PassError
from drawplate.invariants import SIGNATURE
from drawplate.learning.descent import Precision, halves
from drawplate.learning.state import Aside
from drawplate.leaves import Leaf
from drawplate.memory import of_end_to_end
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.preferences import Preferences, Referee
from drawplate.program import Program, Weight
from drawplate.training import Network, Settings, train


@dataclass(frozen=True)
class TrainingPass(Pass):
    """The options that all of them have; see aims.py and training.py."""

    loss: Aim = "kl"
    tokens: int = 32768
    epochs: int = 1
    rate: float = 2e-4
    batch: int = 2
    held: int = 4
    beta: float = BETA
    precision: Precision = "f32"

    keeps: ClassVar[tuple[Invariant, ...]] = (SIGNATURE,)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, positive=("epochs", "rate", "batch", "beta"), not_negative=("held",))

    @property
    def reads_original(self) -> bool:
        """The teacher."""
        return self.loss == "kl"

    def check_env(self, env: Env) -> None:
        refuse_no_aim(self.loss, self.text(env))

    def text(self, env: Env) -> Calibration:
        """What it trains on. Raises PassError if there is none."""
        return env.text(f"{self.name} needs", "it trains on what the model says of it")

    def refuse_untrainable(self, program: Program, wanted: object, why: str, fix: str) -> None:
        """Raise PassError if there is nothing to train (`wanted` is empty), or nothing to train it by."""
        refuse_no_logits(program)
        if not wanted:
            raise PassError(f"{self.name} has nothing to train", why=why, fix=fix)

    def trained(self, program: Program, read: Program, leaves: Mapping[str, Leaf], env: Env) -> dict[str, Weight]:
        """The leaves' weights behind the training. program: what came in, which decides the result. read: what runs."""
        text = self.text(env)
        aside = Aside(env.checkpoints, digest(repr(self), program_digest(program), text.digest, str(env.seed)))
        samples = samples_for(self.loss, read, env.original, text, self.tokens, self.beta)
        settings = Settings(self.epochs, self.rate, self.batch, self.held, precision=self.precision)
        network = Network(read, leaves)
        longest = max(samples, key=lambda sample: sum(x[0].numel() for x in sample.inputs))
        others = [program] if env.original is None else [program, env.original]
        env.say(f"{self.name} takes {of_end_to_end(read, others, leaves, longest.inputs)}")

        def weights() -> dict[str, Weight]:
            return train(network, samples, settings, aside, env, self.name)

        return self._with_margins(weights, network, read, text, env) if self.loss == "dpo" else weights()

    def _with_margins(
        self, weights: Callable[[], dict[str, Weight]], network: Network, read: Program, text: Calibration, env: Env
    ) -> dict[str, Weight]:
        """The weights; and how far the pairs that were held back took is told, and in the record `preferences`."""
        pairs = pairs_for(read, text, self.tokens)
        shown, held = halves(len(pairs), self.held)
        referee = Referee(read, [pairs[i] for i in held], self.beta)
        before, found = referee.rewards(network), weights()
        about = Preferences(len(held), held != shown, self.beta, before, referee.rewards(network))
        env.keep("preferences", data=about.data)
        env.tell(f"{self.name}: {about}")
        return found
