"""The engine: models, arena and core in one process, driven by `step`."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from airi import _core
from airi.engine.desk import Desk, Submission
from airi.engine.device_time import DeviceTime
from airi.engine.fleet import Fleet
from airi.engine.isolation import CacheRegions
from airi.engine.loading import Addition, EngineProgress, HostedModel, host_models, larger_arrays
from airi.engine.options import EngineOptions, ModelOptions
from airi.engine.outcomes import ModelCounters, StepOutputs, add_fuller_outputs, make_last, refusal
from airi.engine.prompts import check_request
from airi.engine.records import Records
from airi.engine.requests import Feature, RequestState, now_us
from airi.engine.runner import StepResult
from airi.engine.tenants import Tenants
from airi.errors import ConfigError, MemoryBudgetError, ModelNotFoundError, RequestError
from airi.forbidden import ForbiddenSet
from airi.outputs import Output
from airi.sampling_params import MAX_PRIORITY, SamplingParams

__all__ = ["Engine", "ModelCounters", "StepOutputs", "now_us"]

_OF_NUMBERS = SamplingParams(max_tokens=1, temperature=0.0)
"""What the core is told of a text whose last output has numbers."""
_TIER_WAIT_S = 0.05
"""How long a step without a batch waits for what is being loaded, before it looks at clients again."""


class Engine(Records):
    """Runs requests of several models on one device; the core decides, the runners compute.

    *Thread safety*: none, apart from `cancel`; one thread adds and steps.
    *Invariant*: every request that was added ends with exactly one output that has a finish reason.
    """

    def __init__(self, options: EngineOptions, progress: EngineProgress | None = None) -> None:
        """Loads the models; raises CheckpointError or ConfigError."""
        self._hosting = host_models(options, progress)
        self.options = options = self._hosting.platform.options
        self._runtime = self._hosting.runtime
        self._states: dict[int, RequestState] = {}
        self._tenants = Tenants(self._runtime, self._hosting.models)
        self._fleet = Fleet(options, self._hosting, self._tenants)
        self._fleet.settle(progress)
        self._by_name: dict[str, HostedModel] = {}
        self._regions: list[CacheRegions] = []
        self.counters: list[ModelCounters] = []
        """Per model, in order."""
        for model in self._fleet.models:
            self._welcome(model)
        self._arrays = self._hosting.arrays
        self._pipeline = self._hosting.platform.pipeline(
            self._fleet.models, self._arrays, self._hosting.arena, self._hosting.tiers
        )
        self._held: list[StepOutputs] = []
        """Of steps that were ended between steps, or interrupted; the next ones give them."""
        self._ended: set[int] = set()
        """Requests that ended while a step ran, which may hold a row of them; their ids may be in use again."""
        self._random = random.Random(options.seed)
        self._desk = Desk(max_held=options.max_queued)
        self._device_time = DeviceTime(options.tensor_parallel_size)

    def raise_if_dead(self) -> None:
        """Raises EngineDeadError once no step can run any more, as a device's process has gone."""
        self._hosting.platform.raise_if_dead()

    def close(self) -> None:
        """Ends the processes that other devices have; memory goes with the engine. Nothing may be called after it."""
        self._desk.close()
        self._hosting.platform.close()

    # -- models --------------------------------------------------------------------------------

    @property
    def models(self) -> tuple[HostedModel, ...]:
        """The loaded models, in the order of the options, then of their coming; removed ones keep their place."""
        return tuple(self._fleet.models)

    def _welcome(self, model: HostedModel) -> None:
        for name in (model.name, *model.options.aliases):
            self._by_name[name] = model
        self._regions.append(CacheRegions(model.options.public_prefixes, strict=self.options.isolate_tenants))
        self.counters.append(ModelCounters())

    def add_model(self, model: ModelOptions, progress: EngineProgress | None = None) -> HostedModel:
        """Loads one more model beside those that run, where memory moves between them.

        Its requests may be added at once; they run when its weights are in place. Where it has latency targets its
        steps are measured first, on memory of its own, while the others wait for about `step_warmup_s`. Raises
        CheckpointError or ConfigError; then nothing has changed.
        """
        return self.join(self.load_model(model, progress))

    def load_model(self, model: ModelOptions, progress: EngineProgress | None = None) -> Addition:
        """The first half of `add_model`: reads and prepares its weights. Raises as that does.

        May run in another thread while this one steps, for one model at a time, which joins before another one loads.
        """
        self._check_free(model)
        return self._fleet.load(model, progress)

    def join(self, addition: Addition) -> HostedModel:
        """The second half of `add_model`, for what `load_model` gave. Raises ConfigError; then nothing has changed."""
        self._check_free(addition.hosted.options)
        while self._pipeline.is_running:
            self._held.append(self._collect({}))
        arrays = larger_arrays(self._hosting.platform, self.options, self._arrays, addition)
        if arrays is not None:
            self._runtime.replace_buffers([each.as_buffers() for each in arrays])
            self._arrays = arrays
            self._pipeline.use(arrays)
        self._fleet.add(addition)
        hosted = addition.hosted
        self._welcome(hosted)
        return hosted

    def _check_free(self, model: ModelOptions) -> None:
        for name in (model.name, *model.aliases):
            if name in self._by_name:
                raise ConfigError(f"model name {name!r} is taken", field="name")

    def remove_model(self, model: str | int, *, drains: bool = False) -> None:
        """Takes no more requests of a model and frees its memory when those it has have ended.

        Unless it `drains` they are cancelled now, and those of a sleeping model in any case: to drain that, wake it
        first. It is gone when `model_state` is REMOVED, some steps later.
        """
        hosted = self.find_model(model)
        self._fleet.remove(hosted.index, drains=drains)
        for name in (hosted.name, *hosted.options.aliases):
            del self._by_name[name]

    def sleep(self, model: str | int) -> None:
        """Takes a `sleepable` model's requests off the device, saves its weights and lends its memory to the others.

        Its requests wait, new ones too, until `wake`. It sleeps when `model_state` is ASLEEP, at most two steps later.
        Raises ConfigError, or MemoryBudgetError where the host has no room for the weights.
        """
        self._fleet.sleep(self.find_model(model).index)

    def wake(self, model: str | int) -> None:
        """Brings a sleeping model back; its requests go on where they were taken off. Raises ConfigError, and
        MemoryBudgetError where it sleeps on for want of memory: that is `wake_failure` where it showed later."""
        self._fleet.wake(self.find_model(model).index)

    def wake_failure(self, model: int) -> MemoryBudgetError | None:
        """Why the latest `wake` has left the model of this index asleep; None where it has not."""
        return self._fleet.wake_failure(model)

    def release_memory(self) -> None:
        """Gives the arena's memory back to the system while all models sleep and no request waits.

        It is taken again as requests need it. Prefixes cached so far are not found any more. Raises ConfigError.
        """
        if self._states or self._desk.request_ids:
            raise ConfigError(
                f"{len(self.request_ids)} requests wait; memory is released without any", field="model"
            )
        self._fleet.release_arena()
        for regions in self._regions:
            regions.forget()

    @property
    def is_moving(self) -> bool:
        """Whether a model is on its way to another state; steps take it on, also without requests."""
        return self._fleet.is_moving

    @property
    def served(self) -> list[HostedModel]:
        """The models that take requests, in the order of their coming; those that sleep among them."""
        return [model for model in self.models if not self._fleet.is_gone(model.index)]

    def model_state(self, model: int) -> _core.ModelState:
        """Where the model of this index stands."""
        return self._fleet.state(model)

    # -- requests ------------------------------------------------------------------------------

    def find_model(self, name: str | int) -> HostedModel:
        """A model by name, alias or index; raises ModelNotFoundError."""
        if isinstance(name, int):
            if 0 <= name < len(self.models) and not self._fleet.is_gone(name):
                return self.models[name]
        elif name in self._by_name:
            return self._by_name[name]
        known = ", ".join(model.name for model in self.models if not self._fleet.is_gone(model.index))
        raise ModelNotFoundError(f"model {name!r} is not loaded; loaded: {known}", field="model")

    def add_request(
        self,
        request_id: int,
        model: str | int,
        tokens: Sequence[int] | NDArray[np.int32],
        params: SamplingParams,
        *,
        tenant: int = 0,
        priority: int = 0,
        deadline_us: int | None = None,
        cache_salt: bytes | None = None,
        cache_salt_from: int = 0,
        metered: bool = False,
        forbidden: bytes | None = None,
        shown_tokens: tuple[int, ...] = (),
        prompt_logprobs_from: int = 0,
    ) -> None:
        """Queues one completion of a prompt of token ids (`params.n` is the caller's to expand).

        `priority`: higher is served first, -8 to 8. `deadline_us`: on the clock of `now_us`. With `cache_salt`, KV
        from token `cache_salt_from` on is shared only with requests of the same salt from there; the blocks before
        it are shared as ever. `metered`: each of its steps gives an output, which says what device time it took.
        `forbidden`: the digest of a set that `forbid` knows; logprobs are of the tokens of the text alone then, as
        others would spell what it may not say. `shown_tokens`: special tokens that are text. `prompt_logprobs_from`:
        the token of the prompt from which on log-probabilities are taken, where they are asked for. Raises
        ContextLengthError, ModelNotFoundError, QueueFullError or another RequestError.
        """
        hosted = self.find_model(model)
        if hosted.is_pooling:
            raise RequestError(f"model {hosted.name} gives numbers, no text", field="model")
        places = {"cache_salt_from": cache_salt_from, "prompt_logprobs_from": prompt_logprobs_from}
        prompt = check_request(tokens, params, hosted, priority=priority, places=places)
        eos = () if params.ignore_eos else hosted.eos_token_ids
        stop_ids = np.array(sorted({*eos, *params.stop_token_ids}), np.int32)
        seed = params.seed if params.seed is not None else self._random.getrandbits(64)
        masked = forbidden is not None
        if masked:
            params = params.without_alternatives()
        submission = Submission(
            state=RequestState(
                request_id,
                prompt,
                params,
                stop_ids,
                seed,
                deadline_us,
                metered=metered,
                masked=masked,
                prompt_logprobs_from=prompt_logprobs_from,
            ),
            model=hosted,
            tenant=tenant,
            band=MAX_PRIORITY - priority,
            salts=self._regions[hosted.index].salts(prompt, tenant, cache_salt, cache_salt_from),
            forbidden=forbidden,
            shown_tokens=shown_tokens,
        )
        if submission.has_rules:
            self._desk.hold(submission, now_us())
        else:
            self._submit(submission)

    def add_pooling(
        self,
        request_id: int,
        model: str | int,
        tokens: Sequence[int] | NDArray[np.int32],
        *,
        tenant: int = 0,
        priority: int = 0,
        deadline_us: int | None = None,
        metered: bool = False,
    ) -> None:
        """Queues one text, special tokens included, for a model that gives numbers: its last output has them.

        As `add_request`. Raises ContextLengthError, ModelNotFoundError, QueueFullError or another RequestError.
        """
        hosted = self.find_model(model)
        if not hosted.is_pooling:
            raise RequestError(f"model {hosted.name} generates text; it gives no vectors", field="model")
        prompt = check_request(tokens, _OF_NUMBERS, hosted, priority=priority, places={})
        no_stops = np.empty(0, np.int32)
        state = RequestState(request_id, prompt, _OF_NUMBERS, no_stops, 0, deadline_us, metered=metered)
        self._submit(
            Submission(state=state, model=hosted, tenant=tenant, band=MAX_PRIORITY - priority, salts=[])
        )

    def _submit(self, submission: Submission) -> None:
        """Queues a request in the core; raises RequestError."""
        state, hosted = submission.state, self.find_model(submission.model.index)
        params = state.params
        admit = self._runtime.submit(
            request_id=state.request_id,
            model=hosted.index,
            tenant=submission.tenant,
            band=submission.band,
            tokens=state.prompt,
            max_new_tokens=params.max_tokens,
            # Where a form leaves only the end, that ends the request before min_tokens too.
            min_new_tokens=0 if params.structured is not None else params.min_tokens,
            stop_ids=state.stop_ids,
            arrival_us=now_us(),
            deadline_us=state.deadline_us,
            salts=submission.salts,
            compute_all=bool(state.features & Feature.PROMPT_LOGPROBS),
        )
        if admit != _core.Admit.ACCEPTED:
            kv_blocks = self._runtime.capacity(hosted.index)
            raise refusal(admit, hosted, len(state.prompt), params.max_tokens, self.options, kv_blocks)
        self._states[state.request_id] = state
        self._device_time.begin(state.request_id, metered=state.metered)

    def prepare_structured(self) -> None:
        """Reads the models' tokenizers for forms of texts now: else the first request of each has all wait for that."""
        self._desk.prepare([model for model in self.models if not model.is_pooling])

    def forbid(self, owner: int, sets: Sequence[tuple[ForbiddenSet, Sequence[str]]]) -> Future[None]:
        """As `ForbiddenTexts.replace`: what requests may name, each set for some models. Raises ModelNotFoundError."""
        found = [(each, [self.find_model(name) for name in names]) for each, names in sets]
        return self._desk.forbid(owner, found)

    def cancel(self, request_id: int) -> None:
        """Ends a request within the next step; unknown and ended ids do nothing. Any thread may call it."""
        if not self._desk.cancel(request_id):
            self._runtime.cancel(request_id)

    def set_tenant(self, tenant: int, weight: float, *, kv_quota: float | None = None) -> None:
        """Gives a tenant its share against the others that have requests waiting; 1 unless set.

        `kv_quota`: the share, in [0, 1], of the KV memory each model can count on that the tenant keeps, in use or
        cached, whatever others need; None leaves it as it is. At most 64 tenants can have one, together at most 1.
        Requests that do not fit beside the quotas of others are refused, or end with an error. Raises ConfigError;
        then nothing has changed. Any thread may call it.
        """
        self._tenants.set(tenant, weight, kv_quota)

    def has_work(self) -> bool:
        """Whether any request has not ended, or a step is running still."""
        return bool(self._states or self._desk.request_ids or self._held) or self._pipeline.is_running

    def watch_step(self) -> tuple[int, float]:
        """A file descriptor that is readable once the running step has run, and for how many seconds at most a
        caller that has nothing else to do should wait before the next `step`, listening for requests."""
        wait_s = self._pipeline.time_to_plan_s() if self.options.async_scheduling else 0.0
        return self._pipeline.done_fd, wait_s

    def rest_s(self) -> float:
        """For how many seconds steps give nothing, unless something is added, cancelled or woken before.

        Until the first deadline where all that is left waits for sleeping models; else 0, which promises nothing.
        """
        waits = self._pipeline.is_running or self._held or self._desk.request_ids
        if waits or not self._fleet.all_asleep(self.stats()):
            return 0.0
        deadlines = (s.deadline_us for s in self._states.values() if s.deadline_us is not None)
        return max((min(deadlines, default=math.inf) - now_us()) / 1e6, 0.0)

    @property
    def request_ids(self) -> list[int]:
        """Requests that have not ended."""
        return [*self._states, *self._desk.request_ids]

    def stats(self) -> list[_core.ModelStats]:
        """The core's counters, per model."""
        return self._runtime.stats()

    # -- steps ---------------------------------------------------------------------------------

    def step(self) -> list[Output]:
        """Runs one batch of one model; returns what it gave, and what was cancelled or timed out."""
        return self.step_columns().as_list()

    def step_columns(self) -> StepOutputs:
        """As `step`, in the form that travels: no object per row that only got one more token.

        With `async_scheduling` the next step is planned while this one runs, and started before what this one
        gave is looked at.
        """
        outputs = self._held.pop(0) if self._held else self._advance()
        self._device_time.tell(outputs.others)
        return outputs

    def _advance(self) -> StepOutputs:
        self.raise_if_dead()
        is_idle = not (self._states or self._pipeline.is_running)
        ended = self._desk.hand_on(self._submit, now_us(), is_idle=is_idle)
        others = {output.request_id: output for output in ended}
        if not self._pipeline.is_running and not self._plan(others):
            self._fleet.advance()
            if not others and self._states and self._hosting.tiers is not None and not self.rest_s():
                self._hosting.tiers.wait(_TIER_WAIT_S)
            return StepOutputs(others=list(others.values()))
        if self.options.async_scheduling and not self._pipeline.is_full:
            self._plan(others)
        return self._collect(others)

    def _plan(self, others: dict[int, Output]) -> bool:
        """Launches the next step, if there is one; `others` gets what was cancelled or timed out."""
        began = time.perf_counter()
        info = self._runtime.step(now_us())
        self._end(others, None)
        if not self._pipeline.is_running:
            self._ended.clear()
        if info is not None:
            self._pipeline.launch(info, self._states, since=began)
        return info is not None

    def _collect(self, others: dict[int, Output]) -> StepOutputs:
        """Ends the oldest step that runs; `others` has what ended without a step."""
        try:
            info, result, took_us = self._pipeline.collect()
        except BaseException:
            if others:
                self._held.append(StepOutputs(others=list(others.values())))
            raise
        gone = self._ended | others.keys()
        metered = self._device_time.add(self._arrays[info.buffer], info.num_rows, took_us)
        self._runtime.commit(info.step_id, result.tokens, result.counts, result.status, took_us)
        self._fleet.advance()
        self._desk.after_step()
        outputs = self._outputs(self._count(result, took_us, gone), others, metered)
        if not self._pipeline.is_running:
            self._ended.clear()
        return outputs

    def _count(self, result: StepResult, took_us: int, gone: set[int]) -> StepResult:
        """The result without its rows for requests that have ended before, and counted."""
        self._ended = set()
        if gone:
            kept = np.fromiter((i not in gone for i in result.request_ids.tolist()), np.bool_)
            result = result.only(kept)
        counters = self.counters[result.model]
        counters.steps += 1
        counters.device_us += took_us
        counters.generated_tokens += len(result.tokens) if result.vectors is None else 0
        firsts = result.request_ids[result.draws == 0].tolist()
        counters.prompt_tokens += sum(len(self._states[request_id].prompt) for request_id in firsts)
        return result

    def _outputs(self, result: StepResult, others: dict[int, Output], metered: list[int]) -> StepOutputs:
        """Splits the sampled rows into plain ones and those that have more to say, in `others`."""
        add_fuller_outputs(others, result, self._states, metered)
        self._end(others, result)
        ids, tokens = result.request_ids, result.tokens
        if not others:
            return StepOutputs(ids, tokens, progressed=True)
        plain = np.fromiter((i not in others for i in ids.tolist()), np.bool_, len(ids))
        return StepOutputs(ids[plain], tokens[plain], list(others.values()), progressed=True)

    def _end(self, others: dict[int, Output], result: StepResult | None) -> None:
        """Turns the core's events into last outputs, in `others` by request id."""
        for event in self._runtime.drain_events().tolist():
            request_id = event[0]
            state = self._states.pop(request_id, None)
            if state is None:
                continue
            if state.rules is not None:
                self._desk.retire(state.rules)
            self._ended.add(request_id)
            if request_id not in others:
                tokens = [] if result is None else result.tokens_of(request_id)
                others[request_id] = Output(request_id, tokens)
            make_last(others[request_id], state, event)
