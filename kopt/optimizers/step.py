"""A step: pure from gradients and the present state to the next, then assigned."""

import threading
from types import SimpleNamespace
from typing import Any, NamedTuple

from keras import ops, tree

from kopt._backend import assign, dense, fused, on_device, on_mesh, sum_over_replicas
from kopt._checks import check_choice
from kopt._traced import Traced
from kopt.optimizers.packs import Factors
from kopt.optimizers.state import State


class Seen(NamedTuple):
    """What a step knows of its batch besides gradients.

    Attributes:
        oracle: what was asked; None where nothing was.
        members: the numbers of the variables that it answers for.
        scalars: what was seen, by name.
        parts: what was seen of each weight, by name and number.
    """

    oracle: Any = None
    members: Any = ()
    scalars: Any = {}
    parts: Any = {}


_seen_here = threading.local()
"""What the look of each thread has seen, until its step: replicas have a thread each, and share the optimizer."""


class Step(State):
    """The part of an optimizer that steps, and that swaps weights with their averages."""

    def step(self, oracle, variables, apply=None):
        """Takes a step on the batch that an oracle knows.

        Args:
            oracle: a `kopt.training.Oracle`, as `kopt.Model` makes one for each batch.
            variables: the weights that the oracle looks at.
            apply: what is given the gradients in the place of `self.apply`: a loss-scale wrapper's, for one.

        Returns:
            The loss at the weights before the step, where a look has told it; else None.
        """
        if not self.built:
            self.build(variables)
        (apply or self.apply)(self._looked(oracle, variables), variables)
        return oracle.value

    def _looked(self, oracle, variables):
        """The gradients to step with; what else `look` sees is kept for the step."""
        members = [self._get_variable_index(variable) for variable in variables]
        grads, seen = self.look(oracle)
        lists = {name: zip(members, x, strict=True) for name, x in seen.items() if isinstance(x, list)}
        parts = {name: {i: part for i, part in pairs if part is not None} for name, pairs in lists.items()}
        scalars = {name: x for name, x in seen.items() if name not in parts}
        _seen_here.of = {id(self): Seen(oracle, members, scalars, parts)}
        return grads

    def _taken(self):
        """The number of steps taken so far."""
        root = self._kept.root
        return root._finished_steps(root._kept.flags)

    def current(self):
        """This optimizer's own hyperparameters at the step that comes: what `look` works with."""
        numbers, wide = self._own_numbers(self._taken()), self._kept.root._wide
        return SimpleNamespace(**{name: ops.cast(dense(x), wide) for name, x in numbers.items()})

    def _held(self, name):
        """The slot of this name of each weight: what `look` works with."""
        found = {}
        for pack in self._kept.packs:
            parts = pack.part(pack.stacked({name: dense(pack.variables[name])})[name])
            found |= dict(zip(pack.members, parts, strict=True))
        return [found[member] for member in range(len(found))]

    def _backend_apply_gradients(self, grads, trainable_variables):
        """Sums gradients over replicas, and assigns what the pure step makes of them."""
        looked = id(self) in getattr(_seen_here, "of", ())
        if not looked and (looking := [node for _, node in self._nodes() if node.looks]):
            grads = self._looked(Traced(grads, trainable_variables, type(looking[0]).__name__), trainable_variables)
        seen = vars(_seen_here).pop("of", {}).get(id(self), Seen())
        grads = sum_over_replicas(grads)
        members = [self._get_variable_index(variable) for variable in trainable_variables]
        grads = dict(zip(members, map(dense, grads), strict=True))
        step = self._accumulate if self.gradient_accumulation_steps else self._guard
        self._change(lambda now: step(grads, now, seen))

    def _change(self, function):
        """Assigns what a pure function makes of all that a step may change."""
        variables = {
            "weights": dict(enumerate(self._trainable_variables)),
            "slots": {i: pack.variables for i, pack in enumerate(self._kept.packs)},
            "shared": self._kept.shared,
            "flags": self._kept.flags,
            "averages": dict(enumerate(self._model_variables_moving_average)) if self.use_ema else {},
            "sums": dict(enumerate(self._accumulated_gradients)) if self.gradient_accumulation_steps else {},
        }
        now = tree.map_structure(dense, variables)
        new = function(now)
        for variable, before, value in zip(*map(tree.flatten, (variables, now, new)), strict=True):
            if value is not before:
                assign(variable, value)

    def _accumulate(self, grads, now, seen):
        """Adds gradients up, and steps with their mean once there are enough."""
        number = self.gradient_accumulation_steps
        sums = {i: now["sums"][i] + g for i, g in grads.items()}
        zeros = {i: ops.zeros_like(g) for i, g in sums.items()}
        means = {i: g / number for i, g in sums.items()}
        return ops.cond(
            (self._iterations + 1) % number == 0,
            lambda: self._guard(means, now, seen) | {"sums": now["sums"] | zeros},
            lambda: now | {"sums": now["sums"] | sums},
        )

    def _guard(self, grads, now, seen):
        """Steps; or skips the step and counts it, where asked to and a gradient is not finite."""
        if not self.skip_nonfinite:
            return self._step(grads, now, seen)
        finite = ops.all(ops.stack([ops.all(ops.isfinite(x)) for x in (*grads.values(), *tree.flatten(seen[2:]))]))
        skipped = now["flags"] | {"skipped_steps": now["flags"]["skipped_steps"] + 1}
        return ops.cond(finite, lambda: self._step(grads, now, seen), lambda: now | {"flags": skipped})

    def _step(self, grads, now, seen):
        """The step, from gradients and the present state to the next: pure, but for what `_updated` assigns."""
        grads = dict(zip(grads, self._clip_gradients(list(grads.values())), strict=True))
        step = self._finished_steps(now["flags"])
        if "evaluating" in now["flags"]:
            now = ops.cond(now["flags"]["evaluating"] > 0, lambda: self._swapped(now, step, "training"), lambda: now)
        numbers = self._numbers(step) | {"seen": seen.scalars}
        packs = {i: p for i, p in enumerate(self._kept.packs) if not grads.keys().isdisjoint(p.members)}
        given = {i: self._given_to_rule(p, grads, now["weights"], now["slots"][i]) for i, p in packs.items()}
        parts = {
            i: {n: p.join(self._of(p, x, now["weights"])) for n, x in seen.parts.items()} for i, p in packs.items()
        }
        shared = self._advance(packs, given, parts, numbers, now["shared"])
        h = {i: self._hyperparameters(p, numbers, shared, now["shared"]) for i, p in packs.items()}
        weights, slots = dict(now["weights"]), dict(now["slots"])
        for i, (w, kept) in self._updated(packs, given, parts, h, grads, step).items():
            with on_device(packs[i].treatment.place):
                if w is not None:
                    moved = zip(packs[i].members, packs[i].part(w), strict=True)
                    weights |= {member: weight for member, weight in moved if member in grads}
                kept = packs[i].unstacked(kept)
            slots[i] = slots[i] | {name: slot for name, slot in kept.items() if slot is not None}
        weights, flags = self.landed(now, weights, seen)
        weights, averages = self._smoothed(weights, now["averages"], step)
        return now | {"weights": weights, "slots": slots, "shared": shared, "averages": averages, "flags": flags}

    def landed(self, now, weights, seen):
        """Where on the way from the present weights to the rules' new ones the step ends, and the flags then."""
        return weights, now["flags"]

    def _rule(self, pack):
        return self._kept.rules[pack.treatment.route]

    def _given_to_rule(self, pack, grads, weights, slots):
        """Gradients, weights and slots of a pack; zeros in the place of a gradient that there is not."""
        with on_device(pack.treatment.place):
            grads = pack.join(self._of(pack, grads, weights))
            return grads, pack.join([weights[member] for member in pack.members]), pack.stacked(slots)

    def _of(self, pack, found, weights):
        """What there is for each weight of a pack; zeros where there is nothing."""
        return [found[i] if i in found else ops.zeros_like(weights[i]) for i in pack.members]

    def _updated(self, packs, given, seen, h, grads, step):
        """For each pack the new weights and slots; None in the place of what is assigned already."""
        held = {i: (w, slots) for i, (_, w, slots) in given.items()}

        def update(held):
            new = {i: self._update(packs[i], given[i][0], w, slots, seen[i], h[i]) for i, (w, slots) in held.items()}
            return {i: (w, self._where_given(packs[i], grads, s, held[i][1], step)) for i, (w, s) in new.items()}

        meshed, groups = any(map(on_mesh, self._trainable_variables)), {}  # of which XLA knows nothing
        for i, pack in packs.items():
            one_kernel = self._rule(pack)._is_elementwise and not meshed
            groups.setdefault((pack.treatment.place, one_kernel), {})[i] = held[i]
        new = {}
        for (place, one_kernel), some in groups.items():
            in_place = {i: self._assigned_in_place(packs[i]) for i in some}
            with on_device(place):
                new |= fused(update, some, in_place) if one_kernel else update(some)
        return new

    def _assigned_in_place(self, pack):
        """The variables of a pack's weight and slots, where a kernel may assign them; None where it may not."""
        if self._kept.flags or self.gradient_accumulation_steps or not pack.treatment.elementwise:
            return None, None  # the step is one of two branches, or a slot lacks an axis
        weight = self._trainable_variables[pack.members[0]] if pack.alone and not self.use_ema else None
        return weight, pack.variables

    def _update(self, pack, g, w, slots, seen, h):
        """The new weights and slots of a pack."""
        rule = self._rule(pack)
        u, new = rule.direction(g, w, h.t, h, **slots, **seen)
        if new.keys() != pack.slots.keys():
            raise ValueError(
                f"{type(rule).__name__}: direction must return the slots {sorted(pack.slots)}, got {sorted(new)}."
            )
        return rule.settle(w - h.learning_rate * rule.finish(u, w, h), h), new

    def _advance(self, packs, given, seen, numbers, shared):
        """The shared scalars of this step, from those of the last."""
        sums = {}
        for i, pack in packs.items():
            g, w, slots = given[i]
            h = self._hyperparameters(pack, numbers, shared, shared)
            own = sums.setdefault(self._kept.owners[pack.treatment.route], {})
            for name, value in self._rule(pack).measure(g, w, h.t, h, **slots, **seen[i]).items():
                own[name] = own.get(name, 0.0) + ops.cast(value, self._wide)
        new = dict(shared)
        for owner, own in sums.items():
            rule = self._kept.rules[owner]
            h = rule._namespace(numbers, self._wide, Factors(), shared[owner], shared[owner])
            new[owner] = shared[owner] | rule.advance(h.t, h, **own)
        return new

    def _where_given(self, pack, grads, new, old, step):
        """The new slots of weights that have a gradient; the old ones of the others, but for the first step."""
        given = [member in grads for member in pack.members]
        if all(given):
            return new

        def choose(new, old):
            if pack.flat:
                each = pack.join(
                    [ops.full(s, float(has), pack.treatment.stored) for s, has in zip(pack.shapes, given, strict=True)]
                )
            else:
                each = ops.reshape(ops.convert_to_tensor(given), (-1, *[1] * (len(new.shape) - 1)))
            return ops.where(ops.logical_or(ops.cast(each, "bool"), step == 0), new, old)

        return {name: choose(new[name], old[name]) for name in new}

    def _smoothed(self, weights, averages, step):
        """Keras's `use_ema`: moving averages of the weights, and the weights that they overwrite now and then."""
        if not self.use_ema:
            return weights, averages
        momentum = ops.where(step == 0, 0.0, self.ema_momentum)
        averages = {
            i: ops.cast(momentum, w.dtype) * averages[i] + ops.cast(1 - momentum, w.dtype) * w
            for i, w in weights.items()
        }
        if self.ema_overwrite_frequency:
            overwrite = (step + 1) % self.ema_overwrite_frequency == 0
            weights = {i: ops.where(overwrite, averages[i], w) for i, w in weights.items()}
        return weights, averages

    # ---- its numbers ---------------------------------------------------------------------------------------------

    @property
    def skipped_steps(self):
        """How many steps `skip_nonfinite` has left out."""
        if not self.skip_nonfinite or not self.built:
            return 0
        return int(ops.convert_to_numpy(self._kept.flags["skipped_steps"]))

    def _finished_steps(self, flags):
        """How many steps were taken before this one: what schedules are asked for."""
        steps = ops.convert_to_tensor(dense(self.iterations))
        return steps - ops.cast(flags["skipped_steps"], steps.dtype) if "skipped_steps" in flags else steps

    def _numbers(self, step):
        """What every part's hyperparameters are in this step, by the identity of what it was given."""
        numbers: dict[Any, Any] = {id(node._given): node._own_numbers(step) for _, node in self._nodes()}
        numbers = tree.map_structure(lambda x: ops.cast(dense(x), self._wide), numbers)
        return numbers | {"t": ops.cast(step, self._wide) + 1, "seen": {}}

    def _hyperparameters(self, pack, numbers, shared, last):
        """The `h` of a pack."""
        how, owner = pack.treatment, self._kept.owners[pack.treatment.route]
        return self._rule(pack)._namespace(numbers, how.dtype, how.factors, shared[owner], last[owner])

    def _namespace(self, numbers, dtype, factors, shared, last):
        now = {"t": numbers["t"]} | numbers[id(self._given)] | numbers["seen"] | shared
        h = SimpleNamespace(**{name: ops.cast(x, dtype) for name, x in now.items()})
        h.last = SimpleNamespace(**{name: ops.cast(x, dtype) for name, x in last.items()})
        rate, decay, own_decay = factors
        if rate != 1:
            h.learning_rate = rate * h.learning_rate
        if own_decay is not None:
            h.weight_decay = ops.cast(decay * own_decay, dtype) if decay * own_decay else None
        else:
            h.weight_decay = decay * h.weight_decay if decay and "weight_decay" in now else None
        return h

    # ---- its averages --------------------------------------------------------------------------------------------

    @property
    def evaluating(self):
        """Whether the model holds the weights to evaluate at: see `swap`."""
        return self.built and self.averages and bool(ops.convert_to_numpy(self._kept.flags["evaluating"]))

    def swap(self, to):
        """Puts the weights to evaluate at into the model, or those that are trained back; twice does nothing more.

        Args:
            to: "evaluation" or "training". A step swaps back by itself, but its gradient was taken before:
                `kopt.SwapWeights` does it in time.

        Raises:
            ValueError: the optimizer keeps no averages.
        """
        check_choice(self, ("evaluation", "training"), to=to)
        if not self.averages:
            who = type(self).__name__
            raise ValueError(f"{who}.swap needs an optimizer that averages weights. Try kopt.EMA({who}(...)).")
        if not self.built:
            return
        steps, evaluating = (int(ops.convert_to_numpy(x)) for x in (self.iterations, self._kept.flags["evaluating"]))
        if steps and evaluating != (to == "evaluation"):
            self._change(lambda now: self._swapped(now, self._finished_steps(now["flags"]), to))

    def _swapped(self, now, step, to):
        """The state with one kind of weights in the place of the other, after so many steps."""
        numbers = self._numbers(step - 1)
        weights, slots = dict(now["weights"]), dict(now["slots"])
        for i, pack in enumerate(self._kept.packs):
            if not (rule := self._rule(pack)).averages:
                continue
            _, w, kept = self._given_to_rule(pack, {}, weights, slots[i])
            h = self._hyperparameters(pack, numbers, now["shared"], now["shared"])
            w, kept = (rule.evaluation if to == "evaluation" else rule.training)(w, h, **kept)
            weights |= dict(zip(pack.members, pack.part(w), strict=True))
            slots[i] = pack.unstacked(kept)
        evaluating = ops.full_like(now["flags"]["evaluating"], to == "evaluation")
        return now | {"weights": weights, "slots": slots, "flags": now["flags"] | {"evaluating": evaluating}}

    def finalize_variable_values(self, var_list):
        """Puts averages into the model, where there are any: Keras calls this at the end of `fit`."""
        super().finalize_variable_values(var_list)
        if self.averages:
            self.swap("evaluation")
