"""HBM traffic of programs written by hand, with the expected bytes in comments."""

import pytest

from capret_jax.roofline.compiled import array_bytes, measure_traffic

LAYOUT = "{1,0:T(8,128)}"
VMEM = "{1,0:T(8,128)S(1)}"
BIG = f"f32[1000,100]{LAYOUT}"  # 400,000 bytes
NEAR = f"f32[1000,100]{VMEM}"


def program(entry: str, others: str = "") -> str:
    body = "\n".join(f"  {line}" for line in entry.strip().splitlines())
    return f"HloModule m\n\n{others}\n\nENTRY %main (p: f32[1000,100]) -> f32[] {{\n{body}\n}}\n"


def bytes_of(entry: str, others: str = "") -> float:
    return measure_traffic(program(entry, others)).hbm_bytes


def test_sizes_of_arrays_and_tuples():
    assert array_bytes(f"(bf16[3,5]{LAYOUT}, s32[], pred[7]{{0}})") == 30 + 4 + 7
    assert array_bytes(NEAR) == 0
    assert array_bytes(NEAR, hbm_only=False) == 400_000


def test_operands_are_read_and_results_written():
    entry = f"""
%p = {BIG} parameter(0)
%t = ({BIG}, {BIG}) tuple(%p, %p)
%g = {BIG} get-tuple-element(%t), index=0
%a = {BIG} add(%g, %p)
"""
    assert bytes_of(entry) == 3 * 400_000


def test_operands_in_vector_memory_cause_no_hbm_traffic():
    # The copy reads 400,000 from HBM; the product finds it in VMEM and writes 400,000 to HBM.
    entry = f"""
%p = {BIG} parameter(0)
%s = ({BIG}, {NEAR}, u32[]{{:S(2)}}) copy-start(%p)
%d = {NEAR} copy-done(%s)
%a = {BIG} negate(%d)
"""
    assert bytes_of(entry) == 2 * 400_000


def test_workspaces_of_gpu_libraries_are_no_results():
    entry = f"""
%p = {BIG} parameter(0)
%c = (f32[1000]{{0}}, s8[33554432]{{0}}) custom-call(%p), custom_call_target="__cublas$lt$matmul"
"""
    assert bytes_of(entry) == 400_000 + 4_000


LOOP = f"""
%body (b: (s32[], f32[1000,100])) -> (s32[], f32[1000,100]) {{
  %b = (s32[], {BIG}) parameter(0)
  %x = {BIG} get-tuple-element(%b), index=1
  %y = {BIG} negate(%x)
  %r = {BIG} all-reduce(%y), to_apply=%sum
  ROOT %o = (s32[], {BIG}) tuple(%i, %r)
}}

%condition (c: (s32[], f32[1000,100])) -> pred[] {{
  %c = (s32[], {BIG}) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %n = s32[] constant(12)
  ROOT %l = pred[] compare(%i, %n), direction=LT
}}
"""


def test_loops_count_as_often_as_they_run():
    entry = f"""
%t = (s32[], {BIG}) parameter(0)
%w = (s32[], {BIG}) while(%t), condition=%condition, body=%body
"""
    traffic = measure_traffic(program(entry, LOOP))
    # Twelve times: negate reads and writes, the all-reduce too.
    assert traffic.hbm_bytes == 12 * 4 * 400_000
    assert traffic.collective_bytes == {"all-reduce": 12 * 400_000}


@pytest.mark.parametrize(
    "inside, expected",
    [
        # Everything is read, and a column of sums written.
        ("%s = f32[1000]{0} reduce(%q, %z), dimensions={1}", 400_000 + 4_000),
        # A slice of 10 rows is read, and written.
        (f"%s = f32[10,100]{LAYOUT} dynamic-slice(%q, %z, %z)", 2 * 4_000),
    ],
)
def test_fusions_read_what_they_use(inside, expected):
    result = inside.split(" = ")[1].split(" ")[0]
    fused = f"%f (q: f32[1000,100]) -> f32[] {{\n  %q = {BIG} parameter(0)\n  {inside}\n}}"
    entry = f"%p = {BIG} parameter(0)\n%a = {result} fusion(%p), kind=kLoop, calls=%f"
    assert bytes_of(entry, fused) == expected


def test_fusions_inside_of_fusions_read_what_they_use():
    result = f"f32[10,100]{LAYOUT}"
    fused = f"""%g (r: f32[1000,100]) -> f32[10,100] {{
  %r = {BIG} parameter(0)
  ROOT %s = {result} dynamic-slice(%r, %z, %z)
}}

%f (q: f32[1000,100]) -> f32[10,100] {{
  %q = {BIG} parameter(0)
  %g.1 = {result} fusion(%q), kind=kLoop, calls=%g
  ROOT %n = {result} negate(%g.1)
}}"""
    entry = f"%p = {BIG} parameter(0)\n%a = {result} fusion(%p), kind=kOutput, calls=%f"
    assert bytes_of(entry, fused) == 2 * 4_000


def test_updates_in_place_write_the_update_alone():
    fused = f"""%f (q: f32[1000,100], u: f32[10,100]) -> f32[1000,100] {{
  %q = {BIG} parameter(0)
  %u = f32[10,100]{LAYOUT} parameter(1)
  ROOT %s = {BIG} dynamic-update-slice(%q, %u, %z, %z)
}}"""
    entry = f"""
%p = {BIG} parameter(0)
%v = f32[10,100]{LAYOUT} parameter(1)
%a = {BIG} fusion(%p, %v), kind=kLoop, calls=%f
"""
    # The update is read and written; reading what it replaces is counted, too.
    assert bytes_of(entry, fused) == 3 * 4_000
