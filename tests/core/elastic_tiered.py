"""Models that share an arena and have tiers beside it, on a device that knows whose bytes lie where."""

from __future__ import annotations

from .elastic import Elastic, Owned
from .harness import Config, ModelSpec, Step
from .tiered import Block, Tiered, TieredDevice, Weather

OWNER = -1
"""Where a copy of a block says whose it is."""


class SharedTieredDevice(TieredDevice, Owned):
    """Copies remember whose they are, and come back to nobody else; what is zeroed is read by no transfer."""

    def zero(self, granules: range) -> None:
        super(TieredDevice, self).zero(granules)
        for op in self.running:
            assert op.kind.name != "LOAD" or op.to not in granules, "a slab moves under a transfer"
        for granule, offset in [place for place in self.kv if place[0] in granules]:
            del self.kv[granule, offset]

    def read(self, place: str, granule: int) -> Block:
        block = super().read(place, granule)
        if place == "device":
            owner = self.owner[granule]
            assert isinstance(owner, int), "weights are stored as KV"
            block[OWNER] = owner
        return block

    def write(self, place: str, granule: int, block: Block) -> None:
        if place == "device":
            owner = block.get(OWNER)
            assert not isinstance(self.owner.get(granule), tuple), "a transfer writes to weights"
            block = {offset: token for offset, token in block.items() if offset != OWNER}
            if owner is not None:
                assert self.owner.setdefault(granule, owner) == owner, "E5: bytes of another owner"
        super().write(place, granule, block)


class ElasticTiered(Tiered, Elastic):
    """Both at once."""

    device: SharedTieredDevice

    def __init__(self, specs: list[ModelSpec], config: Config, *, weather: Weather | None = None) -> None:
        super().__init__(specs, config, weather=weather)
        for model in range(len(specs)):
            self.load(model)

    def make_device(self, weather: Weather) -> TieredDevice:
        return SharedTieredDevice(self.specs, self.rule, weather)

    def add(self, spec: ModelSpec) -> int:
        model = super().add(spec)
        self.train(model)
        return model

    def step(self, **kwargs: object) -> Step | None:
        self.report()
        if self.in_flight and "device_us" not in kwargs:
            kwargs["device_us"] = self.tiered.weather.device_us(self.in_flight[0])
        return Elastic.step(self, **kwargs)

    def wake_all(self) -> None:
        for model in range(len(self.specs)):
            if self.runtime.state(model).name == "ASLEEP":
                self.runtime.wake(model)

    def run(self, *, limit: int = 100_000) -> int:
        """As Executor.run; whatever sleeps is woken."""
        count = 0
        while self.runtime.has_work():
            assert count < limit, f"requests are still alive after {limit} steps"
            self.wake_all()
            self.step()
            count += 1
        return count + super().run()
