"""allocate-bits: every weight in the entry of the target's menu that least harms a cost within a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from drawplate.allocation import Allocation, as_json, read
from drawplate.analysis.moves import moves
from drawplate.analysis.sites import Site, sites
from drawplate.budget import Account, Budget
from drawplate.cache import code_digest
from drawplate.calibration import Calibration
from drawplate.costs import NAMED, Sample, cost_file, questions_of, samples, users_cost
from drawplate.device import Device
from drawplate.digest import digest, file_digest, program_digest
from drawplate.encoding import Encoding, RangeMethod, ScaleDtype
from drawplate.errors import DrawplateError, PassError, RecipeError, Refusal
from drawplate.facts import INTERFACE, LINEARS_QUANTISED, WEIGHTS_FLOAT, WEIGHTS_QUANTISED
from drawplate.finalists import finalists, rises
from drawplate.invariants import ROUNDS, SIGNATURE, STORES
from drawplate.menu import fitting, groups, item, menu
from drawplate.options import refuse_numbers
from drawplate.passbase import Env, Invariant, Pass
from drawplate.program import Program
from drawplate.quantising import Method, MethodName, by, candidates
from drawplate.rehearsal import hollow
from drawplate.versions import versions


@dataclass(frozen=True)
class AllocateBits(Pass):
    """Choose an encoding for every weight that linears multiply with or tokens look up, and store it: least expected
    damage to the cost within the budget (picoLLM's question, answered over what the target can hold).

    budget: "90MB", bytes of the model's file (a budget beside the recipe is of all files that a device needs, a
    tokenizer too); "4.25bpw", bits per weight of what is stored, scales included; or
    "12ms/token", of decoding on `device`, by the roofline: all that a token reads is counted, with a cache of `context`
    positions that is full, its rows as wide as keys and values are here: where quantize-cache narrows them behind this
    pass, time is left over. device: a shipped one's name, or a .toml file; see device.py. Time bounds no bytes: a table
    of which a token reads a row may stay as large as it is.

    cost: "kl" to the original, the "loss" of the text's next tokens, "choices" of a task, or a function of one's own,
    "FILE.py:function"; see costs.samples. bits, group, symmetric, scale: the menu where it is not the target's: these
    bit widths, in groups along [out, in], zero in the middle or where it serves best, with scales of this dtype.
    Linears that read the same value get the same encoding, so that they can be merged; a tied table is one weight.
    tokens: of the calibration text that is read, to measure and to store. method, range: see quantize-weights. spill:
    bytes of candidates' codes, and of activations, that stay in memory; the rest goes to disk. measured: the
    allocation.json that this pass left with an artifact: what it measured then, it does not measure again. finalists:
    so many allocations are stored, and the one that does least harm then is kept; see finalists.py.
    """

    budget: str
    cost: str = "kl"
    bits: tuple[int, ...] = ()
    group: tuple[int, ...] = (1, 64)
    symmetric: bool = True
    scale: ScaleDtype = "bf16"
    method: MethodName = "round"
    range: RangeMethod = "minmax"
    tokens: int = 8192
    spill: int = 4 << 30
    device: str = ""
    context: int = 512
    measured: str = ""
    finalists: int = 1

    name: ClassVar = "allocate-bits"
    requires: ClassVar = frozenset({WEIGHTS_FLOAT})
    provides: ClassVar = frozenset({WEIGHTS_QUANTISED, LINEARS_QUANTISED})
    preserves: ClassVar = INTERFACE
    keeps: ClassVar = (SIGNATURE, ROUNDS)
    slow: ClassVar = True

    def __post_init__(self) -> None:
        try:
            timed = Budget.parse(self.budget).unit == "time"
        except RecipeError as error:
            raise ValueError(error.what) from error
        if timed and not self.device:
            raise ValueError(f"budget={self.budget} is time on a device: name it, as in device=oneplus-12")
        if len(self.group) != 2:
            raise ValueError(f"group={self.group} is not two lengths, along [out, in]")
        if self.tokens < 2:
            raise ValueError(f"tokens={self.tokens} is not above 1")
        refuse_numbers(self, positive=("context", "finalists"), not_negative=("spill",))
        try:
            self._asked()
        except DrawplateError as error:
            raise ValueError(f"{error.what}: {error.why}" if error.why else error.what) from error

    @property
    def promises(self) -> tuple[Invariant, ...]:
        """Only what is rounded to nearest moves by half a step at most."""
        return self.keeps if self.method == "round" else (SIGNATURE, STORES)

    @property
    def reads(self) -> tuple[Path, ...]:
        named = [self.measured, self.device if self.device.endswith(".toml") else ""]
        files = () if self.cost in NAMED else (cost_file(self.cost),)
        return (*files, *(Path(name) for name in named if name))

    def check_env(self, env: Env) -> None:
        self._device()
        text = self._text(env)
        if self.cost == "choices":
            questions_of(text)
        elif self.cost not in NAMED:
            users_cost(self.cost)
        if self.measured:
            read(Path(self.measured))

    def _text(self, env: Env) -> Calibration:
        return env.text("allocate-bits needs", "it measures on it how much each weight matters")

    def _samples(self, program: Program, env: Env) -> Iterator[Sample]:
        return samples(self.cost, program, self._text(env), self.tokens, env.seed)

    def run(self, program: Program, env: Env) -> Program:
        found = sites(program)
        menus = {site.name: self._menu(site, env) for site in found}
        account = Account.of(Budget.parse(self.budget), program, found, env.target, self._device(), self.context)
        self._refuse_unfit(found, menus, env)
        key = "" if hollow(program) else self._key(program, menus, env)
        damage = self._damage(program, menus, key, env) if key else self._guessed
        alike = groups(program, found)
        bar = env.progress(alike, "menu")
        items = [item(group, menus, damage, program, env.target, account.time) for group in bar]
        among = finalists(items, account, self.finalists)
        self._refuse_float(found, _encodings(among[0], alike), account.told(items, among[0]))
        allocation, done, measured = self._best(among, alike, program, env)
        chosen = allocation.chosen
        env.keep("allocation", data=as_json(self.cost, items, chosen) | {"around": account.around, "measured": key})
        encodings = _encodings(allocation, alike)
        env.tell(f"{self.name}: {account.told(items, allocation)}, {_told(encodings, allocation, measured)}")
        return done

    def _best(
        self, among: Sequence[Allocation], alike: Sequence[Sequence[Site]], program: Program, env: Env
    ) -> tuple[Allocation, Program, float | None]:
        """What does least harm as it is stored, and what that is; nothing is measured without contents."""
        stored = [self._stored(program, _encodings(a, alike), env) for a in among]
        if hollow(program):
            return among[0], stored[0], None
        harm = rises(self.cost, program, stored, self._samples(program, env))
        best = harm.index(min(harm))
        return among[best], stored[best], harm[best]

    def _device(self) -> Device | None:
        """Raises RecipeError if there is none of that name."""
        return Device.load(self.device) if self.device else None

    def _asked(self) -> list[Encoding]:
        """The menu where it is not the target's."""
        return [Encoding(bits, self.group, self.symmetric, scale=self.scale) for bits in self.bits]

    def _refuse_unfit(self, found: Sequence[Site], menus: Mapping[str, list[Encoding | None]], env: Env) -> None:
        """What no entry of the menu fits stays floating point, and is told; that is an error if nothing fits."""
        unfit = [site for site in found if not menus[site.name]]
        if unfit and len(unfit) == len(found):
            raise PassError(
                "no weight can be stored",
                why=f"no entry of the menu fits any shape; the first is {list(unfit[0].shape)}",
                fix="give a group that divides the weights, such as group=1x-1",
            )
        for site in unfit:
            why = f"stays floating point: no entry of the menu fits its shape {list(site.shape)}"
            env.refuse(Refusal(site.name, self.name, why))

    def _refuse_float(self, found: Sequence[Site], encodings: Mapping[str, Encoding | None], told: str) -> None:
        """Passes behind this one are for linears of integers, so there must be some."""
        if all(encodings[site.name] is None for site in found if site.role != "embedding"):
            raise PassError(
                f"a budget of {self.budget} stores no linear as integers",
                why=f"floating point does least harm, and it fits: {told}",
                fix="use a recipe of floating point, such as 'fp32' or 'bf16', or give a smaller budget",
            )

    def _menu(self, site: Site, env: Env) -> list[Encoding | None]:
        """What this weight may be: the target's menu for all that read it, or the bits that were asked for."""
        if self.bits:
            return fitting(site, self._asked())
        if env.target is not None:
            return menu(site, env.target)
        raise PassError(
            "there is no menu to choose from",
            why="no backend was named, and no bits",
            fix="name a backend (-> xnnpack), or give bits=[2,3,4,8]",
        )

    def _key(self, program: Program, menus: Mapping[str, list[Encoding | None]], env: Env) -> str:
        """Of all that decides what is measured."""
        asked = [self.cost, self.method, self.range, str(self.tokens), str(env.seed)]
        offered = [f"{name}: {', '.join(map(str, entries))}" for name, entries in menus.items()]
        code = file_digest(cost_file(self.cost)) if self.cost not in NAMED else ""
        ours = (code_digest(type(self).__module__), json.dumps(versions()))
        return digest(program_digest(program), self._text(env).digest, code, *ours, *asked, *offered)

    def _damage(self, program: Program, menus: Mapping[str, list[Encoding | None]], key: str, env: Env) -> Any:
        if not self.measured:
            return self._measure(program, menus, env)
        items, _ = read(Path(self.measured), key)
        known = {(item.members, o.what): o.damage for item in items for o in item.options}
        return lambda group, encoding: known[tuple(s.name for s in group), str(encoding)]

    def _measure(self, program: Program, menus: Mapping[str, list[Encoding | None]], env: Env) -> Any:
        encodings = {name: [e for e in menu if e is not None] for name, menu in menus.items()}
        stored = candidates(program, encodings, self._method, env, self.name)
        found = moves(program, stored, self._samples(program, env), env)

        def damage(group: Sequence[Site], encoding: Encoding) -> float:
            return found.damage({site.name: encodings[site.name].index(encoding) for site in group})

        return damage

    @staticmethod
    def _guessed(group: Sequence[Site], encoding: Encoding) -> float:
        """Without contents: what bits alone would do, so that the bytes are known beforehand."""
        step = 4.0**-encoding.bits
        return sum(math.prod(s.shape) * step * (1 + 1e-3 * encoding.blocks(s.shape)[1]) for s in group)

    @property
    def _method(self) -> Method:
        return Method(self.method, self.range, self.tokens, self.spill)

    def _stored(self, program: Program, encodings: Mapping[str, Encoding | None], env: Env) -> Program:
        editor = program.edit()
        wanted = {name: e for name, e in encodings.items() if e is not None}
        editor.weights.update(by(program, wanted, self._method, env, self.name))
        return editor.finish()


def _encodings(allocation: Allocation, alike: Sequence[Sequence[Site]]) -> dict[str, Encoding | None]:
    """Of each weight."""
    return {site.name: allocation.chosen[group[0].name].what for group in alike for site in group}


def _told(encodings: Mapping[str, Encoding | None], allocation: Allocation, measured: float | None) -> str:
    """What was chosen, in one line."""
    counts: dict[str, int] = {}
    for encoding in encodings.values():
        counts[str(encoding or "float")] = counts.get(str(encoding or "float"), 0) + 1
    listed = ", ".join(f"{n} x {text}" for text, n in sorted(counts.items()))
    harm = "guessed by bits alone"
    if measured is not None:
        harm = f"a rise of {measured:.3g} per token on the calibration text, {allocation.damage:.3g} expected"
    return f"{harm}: {listed}"
