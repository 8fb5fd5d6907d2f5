"""A compiled program's text, read against what the program was written to do."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vdm.run.compiled import chips, cost, text, topology
from vdm.run.errors import UserError

pytestmark = pytest.mark.float32

# As a TPU's compiler writes them: a gather of vectors as a sum, a reduce-scatter inside a fusion,
# an asynchronous gather in a loop of four rounds by the compiler's word and in one of three by its
# condition, and a loop of which nobody knows how often it runs.
WRITTEN = """\
HloModule jit_steps, is_scheduled=true

%all-reduce-scatter.3 (input: f32[8,128]) -> f32[2,128] {
  %input = f32[8,128]{1,0:T(8,128)} parameter(0)
  %all-reduce.9 = f32[8,128]{1,0:T(8,128)} all-reduce(%input), to_apply=%add
  ROOT %slice = f32[2,128]{1,0} dynamic-slice(%all-reduce.9), dynamic_slice_sizes={2,128}
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %state = (s32[], bf16[16]{0}) parameter(0)
  %part = bf16[16]{0} get-tuple-element(%state), index=1
  %gather-start = (bf16[16]{0}, bf16[64]{0}) all-gather-start(%part), dimensions={0}
  %gather-done = bf16[64]{0} all-gather-done(%gather-start)
  ROOT %next = (s32[], bf16[16]{0}) tuple(%part, %part)
}

%condition (state: (s32[], bf16[16])) -> pred[] {
  %state.1 = (s32[], bf16[16]{0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

%thrice (state: (s32[], bf16[16])) -> pred[] {
  %three = s32[] constant(3)
  %state.2 = (s32[], bf16[16]{0}) parameter(0)
  %round = s32[] get-tuple-element(%state.2), index=0
  ROOT %less = pred[] compare(%round, %three), direction=LT
}

ENTRY %main (x: f32[8,128], y: (s32[], bf16[16])) -> f32[2,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = (s32[], bf16[16]{0}) parameter(1)
  %own = bf16[128]{0} dynamic-update-slice(%x, %x)
  %dynamic-update-slice.2 = bf16[64]{0} dynamic-update-slice(%x, %x)
  %all-reduce.1 = (bf16[64]{0}) all-reduce(%dynamic-update-slice.2), to_apply=%add
  %loop = (s32[], bf16[16]{0}) while(%y), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
  %again = (s32[], bf16[16]{0}) while(%loop), condition=%thrice, body=%body
  %search = (s32[], bf16[16]{0}) while(%again), condition=%condition, body=%body
  ROOT %out = f32[2,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_collectives_are_found_in_loops_fusions_and_sums():
    found = {one.kind: one for one in text.collectives(text.parse(WRITTEN))}
    assert found.keys() == {"all-gather", "reduce-scatter"}
    gathered, scattered = found["all-gather"], found["reduce-scatter"]
    assert (gathered.times, gathered.num_bytes) == (1 + 4 + 3 + 1, 128 + 8 * 128)
    assert gathered.dtypes == {"bf16"}
    assert (scattered.times, scattered.num_bytes, scattered.dtypes) == (1, 4096, {"f32"})


def test_bytes_are_those_of_operands_and_results_of_what_is_run():
    program = text.parse(WRITTEN)
    assert text.has_loops(program)
    entry = 2 * 4096 + 2 * 4096 + (128 + 128) + (1024 + 4096)  # two parts written, a sum, a fusion
    rounds = 8 * (32 + 128 + 32) + 3 * (4 + 4 + 1)  # and the comparisons of one condition
    assert text.num_bytes(program) == entry + rounds


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def compiled(fn, mesh, shape, out):
    def wrapped(x):
        return jax.shard_map(fn, mesh=mesh, in_specs=P("data"), out_specs=out, check_vma=False)(x)

    return jax.jit(wrapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()


def test_what_this_machine_compiles_is_counted_too(mesh):
    def thrice(x):
        def one(carry, _):
            return jax.lax.psum(jnp.sin(carry), "data"), None

        return jax.lax.scan(one, x, length=3)[0]

    program = text.parse(compiled(thrice, mesh, (10, 7), P("data")).as_text())
    (summed,) = text.collectives(program)
    assert (summed.kind, summed.times, summed.num_bytes) == ("all-reduce", 3, 3 * 5 * 7 * 4)
    gather = functools.partial(jax.lax.all_gather, axis_name="data", axis=0, tiled=True)
    (gathered,) = text.collectives(text.parse(compiled(gather, mesh, (10, 7), P()).as_text()))
    assert (gathered.kind, gathered.times, gathered.num_bytes) == ("all-gather", 1, 10 * 7 * 4)


def test_bytes_moved_are_those_of_xla_where_nothing_is_repeated():
    def fn(x):
        return jnp.tanh(x @ x.T) @ jnp.cos(x)

    done = jax.jit(fn).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    found, counted = cost.of(done), done.cost_analysis()["bytes accessed"]
    assert found.moved == pytest.approx(counted, rel=0.05)
    assert found.collectives == ()


def test_a_loop_over_parts_of_an_array_moves_the_array_once():
    def fn(x):
        return jax.lax.scan(lambda carry, row: (carry + 1.0, row * carry), 0.0, x)[1]

    size = 64 * 50_000 * 4
    done = jax.jit(fn).lower(jax.ShapeDtypeStruct((64, 50_000), jnp.float32)).compile()
    assert text.has_loops(text.parse(done.as_text()))
    # Read and written by parts, and copied once or twice by what is around the loop.
    assert 2 * size <= cost.of(done).moved <= 8 * size


def test_the_roofline_is_the_slower_of_two():
    chip = chips.Chip(flops=100.0, bandwidth=10.0, memory=1.0)
    assert cost.best_seconds(500.0, 10.0, chip) == 5.0
    assert cost.best_seconds(500.0, 80.0, chip) == 8.0


class Refusing:
    """A program that a compiler refuses, in the words of a TPU's."""

    def __init__(self, words):
        self.words = words

    def compile(self):
        raise jax.errors.JaxRuntimeError(self.words)


def test_a_program_too_large_is_an_answer_and_other_errors_are_errors(unchecked):
    words = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
    refused = cost.compiled(Refusing(f"{words}space hbm. Used 18.50G of 15.75G hbm. Exceeded"))
    assert refused == cost.DoesNotFit(18.5 * 2**30, 15.75 * 2**30)
    other = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    refused = cost.compiled(Refusing(f"{other}temporaries (19G) exceeds available HBM (15.75G)."))
    assert refused == cost.DoesNotFit(19 * 2**30, 15.75 * 2**30)
    assert cost.compiled(Refusing(words)) == cost.DoesNotFit(None, None)
    with pytest.raises(jax.errors.JaxRuntimeError):
        cost.compiled(Refusing("INTERNAL: no such thing"))


@pytest.mark.parametrize("name", ["v5e", "v5e:4", "v5e:4x", "h100:8", "4x4", "v5e:4x4:2"])
def test_what_is_no_slice_is_refused(name):
    with pytest.raises(UserError, match=f"--topology must be a TPU slice .* got '{name}'"):
        topology.devices(name)


def test_without_a_compiler_a_line_says_which_package_has_it(monkeypatch):
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: pip install 'vdm-jax\[aot\]'"):
        topology.devices("v5e:2x2")
