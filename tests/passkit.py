"""Small programs as text that the tests of passes share."""

MLP = """// drawplate text 1
program mlp(%input_ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 16 {
  weight @embed : f32[12, 64] = seed(1)
  weight @gate : f32[96, 64] = seed(2)
  weight @up : f32[96, 64] = seed(3)
  weight @down : f32[64, 96] = seed(4)
  weight @head : f32[12, 64] = seed(5)
  %x = aten.embedding(@embed, %input_ids)  // embed
  %g = aten.linear(%x, @gate)  // gate
  %a = aten.silu(%g)
  %u = aten.linear(%x, @up)  // up
  %m = aten.mul.Tensor(%a, %u)
  %d = aten.linear(%m, @down)  // down
  %y = aten.add.Tensor(%x, %d)
  %logits = aten.linear(%y, @head)  // head
  return %logits
}"""

TIED = """// drawplate text 1
program tied(%input_ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 16 {
  weight @embed : f32[12, 64] = seed(1)
  weight @up : f32[64, 64] = seed(2)
  %x = aten.embedding(@embed, %input_ids)  // embed
  %u = aten.linear(%x, @up)  // up
  %y = aten.silu(%u)
  %logits = aten.linear(%y, @embed)  // head
  return %logits
}"""

WIDTHS = """// drawplate text 1
program widths(%x: f32[b, 64]) where 1 <= b <= 4 {
  weight @first : f32[48, 64] = seed(1)
  weight @second : f32[64, 48] = seed(2)
  %0 = aten.linear(%x, @first)  // first
  %1 = aten.silu(%0)
  %2 = aten.linear(%1, @second)  // second
  %3 = aten.add.Tensor(%x, %2)
  return %3
}"""

ATTENTION = """// drawplate text 1
program attention(%input_ids: i64[b, s], %position_ids: i64[b, s]) where 1 <= b <= 4, 1 <= s <= 16 {{
  weight @embed : f32[12, 32] = seed(1)
  weight @q : f32[32, 32] = seed(2)
  weight @k : f32[16, 32] = seed(3)
  weight @v : f32[16, 32] = seed(4)
  weight @head : f32[12, 32] = seed(5)
  %b = aten.sym_size.int(%input_ids, 0)
  %s = aten.sym_size.int(%input_ids, 1)
  %x = aten.embedding(@embed, %input_ids)  // embed
  %q = aten.linear(%x, @q)  // attn.q
  %k = aten.linear(%x, @k)  // attn.k
  %v = aten.linear(%x, @v)  // attn.v
  %qh = aten.reshape(%q, [%b, %s, 4, 8])
  %kh = aten.reshape(%k, [%b, %s, 2, 8])
  %vh = aten.reshape(%v, [%b, %s, 2, 8])
  %qt = aten.transpose.int(%qh, 1, 2)
  %kt = aten.transpose.int(%kh, 1, 2)
  %vt = aten.transpose.int(%vh, 1, 2)
  {attention}
  %ot = aten.transpose.int(%o, 1, 2)
  %or = aten.reshape(%ot, [%b, %s, 32])
  %p = aten.unsqueeze(%position_ids, 2)
  %pf = aten.to.dtype(%p, f32)
  %y = aten.add.Tensor(%or, %pf)
  %logits = aten.linear(%y, @head)  // head
  return %logits
}}"""

CAUSAL = ATTENTION.format(
    attention="%o = aten.scaled_dot_product_attention(%qt, %kt, %vt, None, 0.0, True, scale=0.3, enable_gqa=True)"
    "  // attn"
)
WINDOWED = ATTENTION.format(
    attention="%w = drawplate.window_mask(%qt, 3)\n"
    "  %o = aten.scaled_dot_product_attention(%qt, %kt, %vt, %w, 0.0, False, enable_gqa=True)  // attn"
)
EVERYWHERE = ATTENTION.format(
    attention="%o = aten.scaled_dot_product_attention(%qt, %kt, %vt, None, 0.0, False, enable_gqa=True)  // attn"
)
BIASED = ATTENTION.format(
    attention="%m = aten.ones([%s, %s])\n"
    "  %o = aten.scaled_dot_product_attention(%qt, %kt, %vt, %m, 0.0, False, enable_gqa=True)  // attn"
)
