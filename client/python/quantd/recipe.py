"""What to do to a layer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from quantd.errors import FieldViolation, InvalidArgument
from quantd.v1 import recipe_pb2

Format = Literal[
    "mxfp4", "nvfp4", "int2", "int3", "int4", "int8", "fp8", "entropy-coded", "gaussian-grid"
]
Transform = Literal["identity", "hadamard", "random", "wus", "wush"]
Method = Literal["rtn", "gptq", "watersic", "higgs"]
Solver = Literal["marginal", "conditional"]
ScaleRule = Literal["amax", "mse", "ocp", "noclip", "absmax", "compressed-tensors", "gaussian-mse"]
Granularity = Literal["group", "row", "block-128x128"]
BlockOrder = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Gptq:
    """Options of gptq.

    order: blocks ascending, with errors fed to later columns, or descending.
    act_order: inputs of large second moment first.
    damping: relative to the mean diagonal of the second moment.
    allow_rtn_fallback: round to nearest where the second moment cannot be factored.
    asymmetric: GPTAQ's term; needs a cross moment and a second moment hat.
    """

    order: BlockOrder = "ascending"
    act_order: bool = False
    damping: float = 0.01
    allow_rtn_fallback: bool = False
    asymmetric: bool = False

    def __post_init__(self) -> None:
        _check("gptq.order", self.order, get_args(BlockOrder))


@dataclass(frozen=True)
class Recipe:
    """Transform, method and number format of a layer. None: the server's documented default.

    format: number format of the codes and their scales; watersic and higgs have their own.
    transform: linear map T on every block of input columns, x' = T x and w' = T^-T w.
    method: how codes are chosen.
    solver: how wus and wush are solved.
    scale_rule: how a group's scale follows from its values.
    granularity: which values share a scale.
    group_size: columns that share a scale; fixed for mxfp4 (32) and nvfp4 (16), 16..256 for int,
        a power of two in 32..1024 for higgs (256).
    transform_block_size: columns of one transform block; default the group size.
    damping: relative damping of the marginal solver; default: picked per layer. With watersic: of
        the second moment.
    seed: of the random transform.
    rate_bits: bits a weight, everything stored included, that watersic is to reach; 2, 3 or 4 for
        higgs.
    grid_dimension: of higgs, values that one code stands for: 1 or 2.
    skip_rate_theory: reports of gptq and watersic leave the limits of rate-distortion theory out,
        whose eigenvalues take longer than the method on layers of many columns.
    gptq: options of gptq.
    """

    format: Format | None = None
    transform: Transform = "identity"
    method: Method = "rtn"
    solver: Solver | None = None
    scale_rule: ScaleRule | None = None
    granularity: Granularity | None = None
    group_size: int | None = None
    transform_block_size: int | None = None
    damping: float | None = None
    seed: int = 0
    rate_bits: float | None = None
    grid_dimension: int | None = None
    gptq: Gptq | None = None
    skip_rate_theory: bool = False

    def __post_init__(self) -> None:
        if self.format is not None or self.method in ("rtn", "gptq"):
            _check("format", self.format, get_args(Format))
        _check("transform", self.transform, get_args(Transform))
        _check("method", self.method, get_args(Method))
        if self.solver is not None:
            _check("solver", self.solver, get_args(Solver))
        if self.scale_rule is not None:
            _check("scale_rule", self.scale_rule, get_args(ScaleRule))
        if self.granularity is not None:
            _check("granularity", self.granularity, get_args(Granularity))

    def to_proto(self) -> recipe_pb2.Recipe:
        """The message that the API takes."""

        def enumerator(name: str | None) -> str | None:
            return None if name is None else name.upper().replace("-", "_")

        return recipe_pb2.Recipe(
            format=enumerator(self.format),
            transform=enumerator(self.transform),
            method=enumerator(self.method),
            solver=enumerator(self.solver),
            scale_rule=enumerator(self.scale_rule),
            granularity=enumerator(self.granularity),
            group_size=self.group_size,
            transform_block_size=self.transform_block_size,
            damping=self.damping,
            seed=self.seed,
            rate_bits=self.rate_bits,
            grid_dimension=self.grid_dimension,
            skip_rate_theory=self.skip_rate_theory,
            gptq=None
            if self.gptq is None
            else recipe_pb2.Gptq(
                order=enumerator(self.gptq.order),
                act_order=self.gptq.act_order,
                damping=self.gptq.damping,
                allow_rtn_fallback=self.gptq.allow_rtn_fallback,
                asymmetric=self.gptq.asymmetric,
            ),
        )

    @classmethod
    def from_proto(cls, message: recipe_pb2.Recipe) -> Recipe:
        """The inverse of `to_proto`; unset enums become None or the documented default."""

        def name(enum: Any, value: int) -> Any:
            return enum.Name(value).lower().replace("_", "-") if value else None

        return cls(
            format=name(recipe_pb2.Format, message.format),
            transform=name(recipe_pb2.Transform, message.transform) or "identity",
            method=name(recipe_pb2.Method, message.method) or "rtn",
            solver=name(recipe_pb2.Solver, message.solver),
            scale_rule=name(recipe_pb2.ScaleRule, message.scale_rule),
            granularity=name(recipe_pb2.Granularity, message.granularity),
            group_size=message.group_size or None,
            transform_block_size=message.transform_block_size or None,
            damping=message.damping if message.HasField("damping") else None,
            seed=message.seed,
            rate_bits=message.rate_bits or None,
            grid_dimension=message.grid_dimension or None,
            skip_rate_theory=message.skip_rate_theory,
            gptq=Gptq(
                order=name(recipe_pb2.BlockOrder, message.gptq.order) or "ascending",
                act_order=message.gptq.act_order,
                damping=message.gptq.damping if message.gptq.HasField("damping") else 0.01,
                allow_rtn_fallback=message.gptq.allow_rtn_fallback,
                asymmetric=message.gptq.asymmetric,
            )
            if message.HasField("gptq")
            else None,
        )

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe in a result file's metadata.

        Raises:
            InvalidArgument: not a recipe.

        """
        try:
            fields = json.loads(text)
            known = {key: fields[key] for key in cls.__dataclass_fields__ if key in fields}
            for key in ("group_size", "transform_block_size", "rate_bits", "grid_dimension"):
                known[key] = known.get(key) or None
            if known.get("gptq") is not None:
                known["gptq"] = Gptq(**known["gptq"])
            return cls(**known)
        except (ValueError, TypeError, AttributeError) as error:
            raise InvalidArgument(
                f"recipe: expected a JSON object of recipe fields: {error}"
            ) from error


def _check(field: str, value: str | None, known: tuple[str, ...]) -> None:
    if value not in known:
        description = f"expected one of {', '.join(known)}, came {value!r}"
        raise InvalidArgument(
            f"{field}: {description}", field_violations=[FieldViolation(field, description)]
        )
