"""What an optimizer keeps for the weights it is built on: laid out to be updated at once, saved by weight."""

import collections
import math
import re
import warnings
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt._backend import on_device, on_mesh, outside_the_trace, places_of
from kopt.optimizers.hyperparameters import Hyperparameters
from kopt.optimizers.packs import LARGE, Factors, Pack, Slot, Treatment
from kopt.optimizers.rule import Rule
from kopt.penalties import WeightDecay


class State(Rule, Hyperparameters, keras.optimizers.Optimizer):
    """The part of an optimizer that makes and saves its state.

    Once it is built, `_kept`, which it shares with the optimizers inside it, has its `rules` by route (see
    `Optimizer.routes`), the `packs` of weights with their slots, the `shared` scalars, and `flags`, scalars of the base
    itself. Routes whose rules have the same hyperparameters share their scalars: `owners` has the route under which
    each finds them.
    """

    _kept: Any
    _wide: str

    def build(self, variables):
        """Makes the state for these variables, once.

        Args:
            variables: the trainable `keras.Variable`s, each with a fully known shape.

        Raises:
            ValueError: a pattern of `no_decay` or `groups` matches no variable.
        """
        if self.built:
            return
        if self.gradient_accumulation_steps and (seeing := [node for _, node in self._nodes() if node.sees]):
            raise ValueError(
                f"{type(seeing[0]).__name__}: gradient_accumulation_steps must be None, since what it sees of several "
                "batches besides their gradients does not add up to what it would see of one. Use larger batches."
            )
        with outside_the_trace():
            super().build(variables)
            dtypes = [keras.backend.standardize_dtype(v.dtype) for v in variables]
            self.__dict__["_wide"] = "float64" if "float64" in dtypes else "float32"
            for prefix, node in self._nodes():
                node._make_inputs(self, prefix)
            rules = self.routes()
            flags = {"skipped_steps": 0.0} if self.skip_nonfinite else {}
            flags |= self.own_flags()
            flags |= {"evaluating": 0.0} if any(rule.averages for rule in rules.values()) else {}
            flags = {name: self._scalar(name, value) for name, value in flags.items()}
            packs = self._lay_out(variables, rules)
            used = dict.fromkeys(pack.treatment.route for pack in packs)
            owners = self._owners({route: rules[route] for route in used})
            shared = {r: {n: self._scalar(n, x) for n, x in rules[r].shared().items()} for r in set(owners.values())}
        kept = SimpleNamespace(root=self, rules=rules, owners=owners, shared=shared, flags=flags, packs=packs)
        for _, node in self._nodes():
            node.__dict__["_kept"] = kept

    def _owners(self, rules):
        """For each route the first that keeps scalars with it: one set for all weights that an optimizer has."""
        first, keepers = {}, {route: rule._keepers() for route, rule in rules.items()}
        for route, kept in keepers.items():
            first.setdefault(kept[:1], route)
            if kept != keepers[first[kept[:1]]]:
                raise ValueError(
                    f"{type(self).__name__}: an optimizer that keeps scalars for all weights must not be around some "
                    f"that keep different ones of their own, got {self!r}. Try what routes them around it."
                )
        return {route: first[kept[:1]] for route, kept in keepers.items()}

    def _keepers(self):
        """Who keeps shared scalars in this rule, the outermost first."""
        return (id(self._given),) if self.shared() else ()

    def own_flags(self) -> dict[str, float]:
        """The scalars of the step as a whole that an outermost optimizer keeps: see `landed`."""
        return {}

    def _scalar(self, name, value):
        def initial(shape, dtype):
            return ops.convert_to_tensor(value, dtype)

        return self.add_variable(np.shape(value), initial, self._wide, aggregation="only_first_replica", name=name)

    def treatments(self, variables):
        """How each of these variables is updated; None for what Keras overwrites with its gradient."""
        rules = self.routes()
        apart = keras.distribution.distribution() is not None or any(map(on_mesh, variables))  # over several devices
        found, sizes = [], collections.Counter()
        for number, (variable, place) in enumerate(zip(variables, places_of(variables), strict=True)):
            path, shape = getattr(variable, "path", variable.name), tuple(variable.shape)
            rule = rules[route := self.route(path, shape)]
            elementwise = rule._is_elementwise and all(s.shape == shape for s in _slots(rule, shape).values())
            stored = keras.backend.standardize_dtype(variable.dtype)
            dtype = stored if stored == "float64" else "float32"
            layout = number if apart or (elementwise and math.prod(shape) >= LARGE) else shape
            factors = rule._factors(path)._replace(own_decay=_own_decay(variable))
            treatment = Treatment(route, stored, dtype, factors, elementwise, layout, place)
            sizes[treatment] += math.prod(shape)
            found.append(None if self._overwrite_variable_with_gradient(variable) else treatment)
        return [t._replace(layout="flat") if _lies_flat(t) and sizes[t] < LARGE else t for t in found]

    def _lay_out(self, variables, rules):
        """Puts together what can be updated at once, and makes its slots."""
        packs, paths = {}, [getattr(variable, "path", variable.name) for variable in variables]
        for rule in rules.values():
            rule._check_patterns(paths)
        for number, (variable, treatment) in enumerate(zip(variables, self.treatments(variables), strict=True)):
            if treatment is None:
                continue
            shape = tuple(variable.shape)
            pack = packs.setdefault(treatment, Pack(treatment, [], [], _slots(rules[treatment.route], shape), {}))
            pack.members.append(number)
            pack.shapes.append(shape)
        for number, pack in enumerate(packs.values()):
            owners = [variables[member] for member in pack.members]
            with on_device(pack.treatment.place):
                pack.variables.update({name: self._make_slot(pack, name, owners, number) for name in pack.slots})
        return list(packs.values())

    def _make_slot(self, pack, name, owners, number):
        slot, shape = pack.slots[name], pack.slot_shape(name)
        dtype = slot.dtype or pack.treatment.dtype

        def initial(shape, dtype):
            return ops.full(shape, slot.initial, dtype)

        if len(owners) > 1:
            return self.add_variable(shape, initial, dtype, name=f"{name}_{number}")
        if shape == tuple(owners[0].shape) and dtype == owners[0].dtype:  # laid out over devices as the weight is
            return self.add_variable_from_reference(owners[0], name, initial)
        path = getattr(owners[0], "path", owners[0].name)
        return self.add_variable(shape, initial, dtype, name=f"{path.replace('/', '_')}_{name}")

    def _same_slots(self):
        """Whether the hyperparameters, as they are now, ask for the slots that were built."""
        rules, packs = self._kept.root.routes(), self._kept.packs
        return all(rules[p.treatment.route].slots(p.shapes[0]).keys() == p.slots.keys() for p in packs)

    def _factors(self, path):
        """The factors of a weight's learning rate and weight decay, as `groups` and `no_decay` have them."""
        matching = [factors for pattern, factors in self.groups.items() if re.search(pattern, path)]
        decays = not any(re.search(pattern, path) for pattern in self.no_decay)
        rate = math.prod(factors.get("learning_rate", 1.0) for factors in matching)
        return Factors(rate, decays * math.prod(factors.get("weight_decay", 1.0) for factors in matching))

    def _check_patterns(self, paths):
        masks = [("no_decay", self.no_decay)] if self.no_decay else []
        for option, patterns in (*masks, *(("groups", (pattern,)) for pattern in self.groups)):
            if not any(re.search(pattern, path) for pattern in patterns for path in paths):
                raise ValueError(
                    f"{type(self).__name__}: {option} must match a weight's path, and {', '.join(map(repr, patterns))} "
                    f"matches none of {', '.join(paths[:8])}{', ...' if len(paths) > 8 else ''}."
                )

    def save_own_variables(self, store):
        """Writes the state: slots by the number of their weight and their name, all else by its number."""
        if self._inputs is not None and not self.built:  # an inner optimizer: the outermost has its state
            return
        for i, variable in enumerate(self._unpacked()):
            store[str(i)] = variable.numpy()
        for pack in self._kept.packs:
            for member, name, array in pack.saved():
                store[f"{member}.{name}"] = array

    def load_own_variables(self, store):
        """Reads what `save_own_variables` wrote."""
        if self._inputs is not None and not self.built:
            return
        unpacked = self._unpacked()
        slots = {f"{member}.{name}" for pack in self._kept.packs for member in pack.members for name in pack.slots}
        needed = slots | {str(i) for i in range(len(unpacked))}
        if needed != set(store.keys()):
            warnings.warn(
                f"{type(self).__name__}: the saved state is left out, for it is that of another optimizer or of other "
                f"weights: it has {len(store.keys())} entries, and these weights need {len(needed)}.",
                stacklevel=2,
            )
            return
        for i, variable in enumerate(unpacked):
            variable.assign(store[str(i)])
        for pack in self._kept.packs:
            pack.restore(lambda member, name: store[f"{member}.{name}"])

    def _unpacked(self):
        """The variables that belong to no pack."""
        packed = {id(variable) for pack in self._kept.packs for variable in pack.variables.values()}
        return [variable for variable in self.variables if id(variable) not in packed]


def _lies_flat(treatment):
    """Whether weights of this treatment may be laid end to end with those of other shapes."""
    return treatment is not None and treatment.elementwise and isinstance(treatment.layout, tuple)


def _own_decay(variable):
    """The decay that a weight's regularizer asks for, or None."""
    regularizer = getattr(variable, "regularizer", None)
    return regularizer.strength if isinstance(regularizer, WeightDecay) else None


def _slots(rule, shape):
    return {name: slot if isinstance(slot, Slot) else Slot(slot) for name, slot in rule.slots(shape).items()}
