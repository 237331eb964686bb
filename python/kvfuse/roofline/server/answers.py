"""What the library answers to the API's requests; what it refuses becomes an answer of one sentence."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from functools import lru_cache
from typing import TypeVar

from kvfuse.roofline import predict
from kvfuse.roofline.inputs import Hardware, Model, model_names
from kvfuse.roofline.measured import ValidatedRecord, validate
from kvfuse.roofline.results import OperatorPrediction, PassPrediction, Recommendation
from kvfuse.roofline.server import schemas
from kvfuse.roofline.server.errors import Refused, about
from kvfuse.roofline.server.measuring import Measuring
from kvfuse.roofline.server.settings import Settings

_PHASES = ["decode", "prefill", "auto"]
_SLICE_SECONDS = 0.005  # of one request's computing, before others have a turn

Item = TypeVar("Item")


async def _in_slices(items: Iterable[Item]) -> AsyncIterator[Item]:
    """The items, letting other requests run between them."""
    turn_ends = time.perf_counter() + _SLICE_SECONDS
    for item in items:
        yield item
        if time.perf_counter() > turn_ends:
            await asyncio.sleep(0)
            turn_ends = time.perf_counter() + _SLICE_SECONDS


def model_of(choice: schemas.ModelChoice) -> Model:
    """The model of a request, checked."""
    if choice.model is not None:
        with about("model"):
            return Model.preset(choice.model)
    assert choice.sizes is not None
    with about("model_config"):
        sizes = choice.sizes.model_dump()
        is_letters = isinstance(choice.sizes, schemas.ModelLetters)
        model = Model.of_letters(sizes) if is_letters else Model(**sizes)
        model.native()
        return model


class Answers:
    """What the API answers, on the machines and by the calibration of the settings."""

    def __init__(self, settings: Settings) -> None:
        self._registry = settings.registry
        self._find = lru_cache(maxsize=256)(settings.registry.find)
        self._calibration = settings.calibration
        self._limits = settings.limits
        self._measuring = Measuring(settings.limits) if settings.measure else None
        self._here = None if settings.calibration is None else settings.calibration.hardware()
        if self._here is not None:
            self._registry.add(self._here)
        published = {one.name for one in self._registry.with_reference_figures()}
        self.hardware = schemas.HardwareAnswer(
            hardware=[_entry(one, one.name in published) for one in self._registry.all()]
        )
        self.models = schemas.ModelsAnswer(models=[Model.preset(name) for name in model_names()])

    def close(self) -> None:
        if self._measuring is not None:
            self._measuring.close()

    def machine_of(self, choice: schemas.HardwareChoice) -> Hardware:
        with about("hardware"):
            machine = self._find(choice.hardware)
        with about("profile"):
            return machine if choice.profile == "vendor" else self._find(machine.name, choice.profile)

    def options(self, public: bool) -> schemas.OptionsAnswer:
        return schemas.OptionsAnswer(
            precisions=[one.name for one in predict.precisions()],
            strategies=[one.name for one in predict.strategies()],
            attention=predict.attention_names(),
            operators=predict.op_names(),
            phases=_PHASES,
            measuring=self._measuring is not None and not public,
            calibrated=None if self._here is None else self._here.name,
            limits=self._limits,
        )

    def measuring_for(self, wanted: bool, public: bool) -> Measuring | None:
        """What measures for a request, if it wants it."""
        if not wanted:
            return None
        if self._measuring is None or public:
            where = "under /api/public" if public else "on this server"
            raise Refused(403, f"expected measure to be false {where}, got true", "body", "measure")
        return self._measuring

    async def analyze(
        self,
        machine: Hardware,
        product: schemas.Gemm,
        precision: str,
        measuring: Measuring | None,
    ) -> schemas.AnalyzeAnswer:
        sizes = (product.M, product.N, product.K)
        with about():
            theory = predict.predict_gemm(machine, *sizes, precision)
        measured = None if measuring is None else await measuring.gemm(*sizes, theory.precision)
        return schemas.AnalyzeAnswer(
            hardware=machine.name,
            M=product.M,
            N=product.N,
            K=product.K,
            precision=theory.precision,
            theory=theory,
            measurement=measured,
            efficiency=None if measured is None else theory.predicted_time_us / measured.measured_time_us,
        )

    async def sweep(self, request: schemas.SweepRequest, public: bool) -> schemas.SweepAnswer:
        machine = self.machine_of(request)
        measuring = self.measuring_for(request.measure, public)
        points = len(request.shapes) * len(request.precisions)
        most = self._limits.measured_points if request.measure else self._limits.sweep_points
        if points > most:
            kind = "measured points" if request.measure else "points"
            raise Refused(422, f"expected a sweep of at most {most} {kind}, got {points}", "body", "shapes")
        pairs = ((shape, precision) for shape in request.shapes for precision in request.precisions)
        return schemas.SweepAnswer(
            results=[
                await self.analyze(machine, shape, precision, measuring)
                async for shape, precision in _in_slices(pairs)
            ]
        )

    def recommend(self, request: schemas.RecommendRequest) -> Recommendation:
        machine, model = self.machine_of(request), model_of(request)
        with about():
            return predict.recommend(
                machine,
                model,
                phase=request.phase,
                seq_len=request.seq_len,
                batch=request.batch,
                max_quality_loss_pct=request.max_quality_loss_pct,
                min_speedup=request.min_speedup,
                allow_storage_only=request.allow_storage_only,
            )

    def predict(self, request: schemas.PredictRequest) -> schemas.PredictAnswer:
        machine, model = self.machine_of(request), model_of(request)
        is_decode = request.phase == "decode"
        with about():
            prediction = predict.predict_pass(
                machine,
                model,
                batch=request.batch,
                past=request.seq_len - 1 if is_decode else 0,
                tokens=1 if is_decode else request.seq_len,
                strategy=request.strategy,
            )
            resident = predict.predict_generation(
                machine,
                model,
                batch=request.batch,
                prompt_length=request.seq_len,
                new_tokens=1,
                strategy=request.strategy,
            )
        peaks = {name: peak.value for name, peak in machine.info.peak_tflop_s.items()}
        return schemas.PredictAnswer(
            total=_total(prediction),
            operators=[_operator_row(one) for one in prediction.operators],
            roofs=schemas.RoofLines(bandwidth_gb_s=machine.info.bandwidth_gb_s.value, peak_tflop_s=peaks),
            kv_cache_bytes=resident.kv_cache_bytes,
            weight_bytes=resident.weight_bytes,
            fits_memory=resident.fits_memory,
        )

    async def kv(self, request: schemas.KvRequest) -> schemas.KvAnswer:
        model = model_of(request)
        weight_bytes = self._fp16_weight_bytes(model)
        curves = []
        crossover = {}
        with about():
            for precision in request.precisions:
                one_token = predict.kv_cache_bytes(model, 1, batch=request.batch, precision=precision)
                crossover[precision] = weight_bytes / one_token
                sizes = [
                    predict.kv_cache_bytes(
                        model,
                        tokens,
                        batch=request.batch,
                        precision=precision,
                        recent_window=request.recent_window,
                    )
                    async for tokens in _in_slices(request.contexts)
                ]
                curves.append(schemas.KvCurve(precision=precision, bytes=sizes))
        return schemas.KvAnswer(curves=curves, weight_bytes=weight_bytes, crossover_tokens=crossover)

    def _fp16_weight_bytes(self, model: Model) -> float:
        """Resident weights, which are the same on any machine."""
        machine = self._registry.find(self._registry.names()[0])
        return predict.predict_generation(
            machine, model, prompt_length=1, new_tokens=1, strategy="fp16"
        ).weight_bytes

    def attention(self, request: schemas.AttentionRequest) -> schemas.AttentionAnswer:
        machine = self.machine_of(request)
        shape = request.model_dump(exclude={"hardware", "profile"})
        with about():
            return schemas.AttentionAnswer(kernels=predict.compare_attention(machine, **shape))

    async def validate(self, body: bytes) -> schemas.ValidateAnswer:
        with about():
            text = body.decode("utf-8", errors="replace")
            found = await asyncio.to_thread(validate, text, "line", self._calibration)
        return schemas.ValidateAnswer(
            machine=found.machine,
            records=[_record_row(one) for one in found.records],
            skipped=found.skipped,
            median_absolute_error=found.median_absolute_error,
            largest_absolute_error=found.largest_absolute_error,
            above_roof=found.above_roof,
        )


def _entry(machine: Hardware, has_reference: bool) -> schemas.HardwareEntry:
    info = machine.info
    return schemas.HardwareEntry(
        name=info.name,
        title=info.title,
        kind=info.kind,
        aliases=info.aliases,
        bandwidth_gb_s=info.bandwidth_gb_s.value,
        memory_gb=None if info.memory_gb is None else info.memory_gb.value,
        peak_tflop_s={name: peak.value for name, peak in info.peak_tflop_s.items()},
        critical_intensity={name: machine.critical_ai(name) for name in info.peak_tflop_s},
        profiles=[info.profile, "reference"] if has_reference else [info.profile],
        sources=schemas.HardwareSources(
            bandwidth=info.bandwidth_gb_s.source,
            memory=None if info.memory_gb is None else info.memory_gb.source,
            peaks={name: peak.source for name, peak in info.peak_tflop_s.items()},
        ),
        note=info.note,
    )


def _total(prediction: PassPrediction) -> schemas.Total:
    return schemas.Total(
        time_ms=prediction.time_ms,
        shortest_ms=prediction.shortest_ms,
        flops=prediction.flops,
        bytes=prediction.bytes,
        bottleneck=prediction.bound,
        ai=prediction.ai,
    )


def _operator_row(one: OperatorPrediction) -> schemas.OperatorRow:
    return schemas.OperatorRow(
        name=one.op,
        flops=one.flops,
        bytes=one.bytes,
        time_ms=one.time_ms,
        ai=one.ai,
        bottleneck=one.bound,
        precision=one.precision,
        storage_only=one.storage_only,
    )


def _record_row(one: ValidatedRecord) -> schemas.RecordRow:
    model = f" {one.model}" if one.model else ""
    what = f"{one.stage}, " if one.stage else ""
    label = (
        f"{one.version}{model} {one.dtype}: {what}batch {one.batch}, prompt {one.prompt_length}, T {one.T}"
    )
    return schemas.RecordRow(
        **asdict(one), label=label, ai=one.flops / one.bytes, achieved_flops=one.flops / one.measured_ms * 1e3
    )
