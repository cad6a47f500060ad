"""Rules a part of which spares some weights."""

import re
from typing import ClassVar

from kopt.optimizers.base import Optimizer


class Sparing(Optimizer):
    """A rule with a part that weights are spared whose path a pattern matches: there, `spares` is True."""

    sparing: ClassVar[str]
    """The argument that holds the patterns."""

    spares = False

    def routes(self):
        routes = super().routes()
        if not getattr(self, self.sparing):
            return routes
        return routes | {f"spared {name}": rule._view(spares=True) for name, rule in routes.items()}

    def route(self, path, shape):
        route = super().route(path, shape)
        matches = any(re.search(pattern, path) for pattern in getattr(self, self.sparing))
        return f"spared {route}" if matches else route
