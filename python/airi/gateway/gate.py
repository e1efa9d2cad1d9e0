"""The one way from an HTTP request to a model.

Every route that uses a model passes `Gate.admit`, after the caller is known and before anything is spent on the
request: what a caller may do, its limits and its place in the queue are decided here and nowhere else.
"""

from __future__ import annotations

from airi.gateway.http import CallRecord
from airi.gateway.models import ModelRegistry, ServedModel


class Gate:
    """Finds the model that a request names. Everybody who is known may use every model that is served.

    *Thread safety*: immutable after construction.
    """

    def __init__(self, models: ModelRegistry) -> None:
        self._models = models

    def admit(self, record: CallRecord, name: str | None) -> ServedModel:
        """The model for this call, noted in its record; raises a 404. None means the first model."""
        model = self._models.find(name)
        record.model = model.name
        return model
