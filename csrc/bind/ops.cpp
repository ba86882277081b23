// SPDX-License-Identifier: Apache-2.0
// ops.cpp: every params struct with its fields, and op(params, team, isa) for every op.
#include "../cpu/kernels.h"
#include "bind.h"
#include "params.h"

namespace pagedserve::bind {

namespace py = pybind11;
using cpu::Isa;
using cpu::KernelTable;
using cpu::Team;
using cpu::Worker;

namespace {

template <class P>
void def_kernel(py::module_& m, const char* name, void (*KernelTable::*kernel)(const P&, Worker&)) {
  m.def(
      name,
      [kernel](const P& params, Team& team, Isa isa) {
        const auto call = cpu::kernels(isa).*kernel;
        team.run([&](Worker& worker) { call(params, worker); });
      },
      py::arg("params"), py::arg("team"), py::arg("isa"), py::call_guard<py::gil_scoped_release>());
}

void bind_params(py::module_& m) {
  py::enum_<DType>(m, "DType")
      .value("f32", DType::kF32)
      .value("f16", DType::kF16)
      .value("bf16", DType::kBF16)
      .value("i8", DType::kI8)
      .value("f8e4m3", DType::kF8E4M3)
      .value("i4", DType::kI4);
  py::enum_<Activation>(m, "Activation").value("silu", Activation::kSilu).value("gelu_tanh", Activation::kGeluTanh);
  py::enum_<WeightFormat>(m, "WeightFormat")
      .value("f32", WeightFormat::kF32)
      .value("bf16", WeightFormat::kBF16)
      .value("q8", WeightFormat::kQ8)
      .value("q4", WeightFormat::kQ4);

  ParamsClass<KvPages>(m, "KvPages")
      .field("data", &KvPages::data)
      .field("scales", &KvPages::scales)
      .field("page_stride", &KvPages::page_stride)
      .field("token_stride", &KvPages::token_stride)
      .field("head_stride", &KvPages::head_stride)
      .field("scale_page_stride", &KvPages::scale_page_stride)
      .field("scale_token_stride", &KvPages::scale_token_stride)
      .field("scale_head_stride", &KvPages::scale_head_stride)
      .field("dtype", &KvPages::dtype);

  ParamsClass<PagedAttentionParams>(m, "PagedAttentionParams")
      .field("q", &PagedAttentionParams::q)
      .field("out", &PagedAttentionParams::out)
      .field("lse", &PagedAttentionParams::lse)
      .field("k", &PagedAttentionParams::k)
      .field("v", &PagedAttentionParams::v)
      .field("page_table", &PagedAttentionParams::page_table)
      .field("kv_lens", &PagedAttentionParams::kv_lens)
      .field("q_starts", &PagedAttentionParams::q_starts)
      .field("tree_mask", &PagedAttentionParams::tree_mask)
      .field("sinks", &PagedAttentionParams::sinks)
      .field("alibi_slopes", &PagedAttentionParams::alibi_slopes)
      .field("q_token_stride", &PagedAttentionParams::q_token_stride)
      .field("q_head_stride", &PagedAttentionParams::q_head_stride)
      .field("out_token_stride", &PagedAttentionParams::out_token_stride)
      .field("out_head_stride", &PagedAttentionParams::out_head_stride)
      .field("page_table_stride", &PagedAttentionParams::page_table_stride)
      .field("num_seqs", &PagedAttentionParams::num_seqs)
      .field("q_len", &PagedAttentionParams::q_len)
      .field("num_q_heads", &PagedAttentionParams::num_q_heads)
      .field("num_kv_heads", &PagedAttentionParams::num_kv_heads)
      .field("head_dim", &PagedAttentionParams::head_dim)
      .field("page_size", &PagedAttentionParams::page_size)
      .field("window", &PagedAttentionParams::window)
      .field("scale", &PagedAttentionParams::scale)
      .field("soft_cap", &PagedAttentionParams::soft_cap)
      .field("q_dtype", &PagedAttentionParams::q_dtype)
      .field("bf16_products", &PagedAttentionParams::bf16_products)
      .field("workspace", &PagedAttentionParams::workspace)
      .field("workspace_bytes", &PagedAttentionParams::workspace_bytes)
      .field("max_pages", &PagedAttentionParams::max_pages)
      .field("num_blocks", &PagedAttentionParams::num_blocks);

  ParamsClass<MergeStatesParams>(m, "MergeStatesParams")
      .field("states", &MergeStatesParams::states)
      .field("state_lse", &MergeStatesParams::state_lse)
      .field("out", &MergeStatesParams::out)
      .field("lse", &MergeStatesParams::lse)
      .field("num_tokens", &MergeStatesParams::num_tokens)
      .field("num_states", &MergeStatesParams::num_states)
      .field("num_heads", &MergeStatesParams::num_heads)
      .field("head_dim", &MergeStatesParams::head_dim)
      .field("dtype", &MergeStatesParams::dtype);

  ParamsClass<AppendKvParams>(m, "AppendKvParams")
      .field("k", &AppendKvParams::k)
      .field("v", &AppendKvParams::v)
      .field("k_pages", &AppendKvParams::k_pages)
      .field("v_pages", &AppendKvParams::v_pages)
      .field("slot_mapping", &AppendKvParams::slot_mapping)
      .field("num_tokens", &AppendKvParams::num_tokens)
      .field("k_token_stride", &AppendKvParams::k_token_stride)
      .field("k_head_stride", &AppendKvParams::k_head_stride)
      .field("v_token_stride", &AppendKvParams::v_token_stride)
      .field("v_head_stride", &AppendKvParams::v_head_stride)
      .field("num_kv_heads", &AppendKvParams::num_kv_heads)
      .field("head_dim", &AppendKvParams::head_dim)
      .field("page_size", &AppendKvParams::page_size)
      .field("src_dtype", &AppendKvParams::src_dtype);

  ParamsClass<CopyPagesParams>(m, "CopyPagesParams")
      .field("src", &CopyPagesParams::src)
      .field("dst", &CopyPagesParams::dst)
      .field("src_pages", &CopyPagesParams::src_pages)
      .field("dst_pages", &CopyPagesParams::dst_pages)
      .field("num_copies", &CopyPagesParams::num_copies)
      .field("page_bytes", &CopyPagesParams::page_bytes)
      .field("src_page_stride_bytes", &CopyPagesParams::src_page_stride_bytes)
      .field("dst_page_stride_bytes", &CopyPagesParams::dst_page_stride_bytes);

  ParamsClass<RmsNormParams>(m, "RmsNormParams")
      .field("x", &RmsNormParams::x)
      .field("residual", &RmsNormParams::residual)
      .field("out", &RmsNormParams::out)
      .field("weight", &RmsNormParams::weight)
      .field("num_tokens", &RmsNormParams::num_tokens)
      .field("x_token_stride", &RmsNormParams::x_token_stride)
      .field("x_head_stride", &RmsNormParams::x_head_stride)
      .field("residual_token_stride", &RmsNormParams::residual_token_stride)
      .field("out_token_stride", &RmsNormParams::out_token_stride)
      .field("out_head_stride", &RmsNormParams::out_head_stride)
      .field("num_heads", &RmsNormParams::num_heads)
      .field("hidden", &RmsNormParams::hidden)
      .field("accumulate", &RmsNormParams::accumulate)
      .field("eps", &RmsNormParams::eps)
      .field("dtype", &RmsNormParams::dtype)
      .field("quantized", &RmsNormParams::quantized);

  ParamsClass<RopeParams>(m, "RopeParams")
      .field("x", &RopeParams::x)
      .field("positions", &RopeParams::positions)
      .field("cos_sin", &RopeParams::cos_sin)
      .field("num_tokens", &RopeParams::num_tokens)
      .field("token_stride", &RopeParams::token_stride)
      .field("head_stride", &RopeParams::head_stride)
      .field("max_position", &RopeParams::max_position)
      .field("num_heads", &RopeParams::num_heads)
      .field("head_dim", &RopeParams::head_dim)
      .field("rotary_dim", &RopeParams::rotary_dim)
      .field("interleaved", &RopeParams::interleaved)
      .field("dtype", &RopeParams::dtype);

  ParamsClass<ActMulParams>(m, "ActMulParams")
      .field("gate_up", &ActMulParams::gate_up)
      .field("out", &ActMulParams::out)
      .field("num_tokens", &ActMulParams::num_tokens)
      .field("gate_up_stride", &ActMulParams::gate_up_stride)
      .field("out_stride", &ActMulParams::out_stride)
      .field("intermediate", &ActMulParams::intermediate)
      .field("activation", &ActMulParams::activation)
      .field("dtype", &ActMulParams::dtype)
      .field("quantized", &ActMulParams::quantized);

  ParamsClass<QuantizeRowsParams>(m, "QuantizeRowsParams")
      .field("x", &QuantizeRowsParams::x)
      .field("quantized", &QuantizeRowsParams::quantized)
      .field("num_tokens", &QuantizeRowsParams::num_tokens)
      .field("x_stride", &QuantizeRowsParams::x_stride)
      .field("width", &QuantizeRowsParams::width);

  ParamsClass<LinearParams>(m, "LinearParams")
      .field("x", &LinearParams::x)
      .field("weight", &LinearParams::weight)
      .field("bias", &LinearParams::bias)
      .field("out", &LinearParams::out)
      .field("num_tokens", &LinearParams::num_tokens)
      .field("x_stride", &LinearParams::x_stride)
      .field("out_stride", &LinearParams::out_stride)
      .field("in_features", &LinearParams::in_features)
      .field("out_features", &LinearParams::out_features)
      .field("accumulate", &LinearParams::accumulate)
      .field("format", &LinearParams::format)
      .field("quantized", &LinearParams::quantized);

  ParamsClass<EmbedParams>(m, "EmbedParams")
      .field("token_ids", &EmbedParams::token_ids)
      .field("weight", &EmbedParams::weight)
      .field("out", &EmbedParams::out)
      .field("num_tokens", &EmbedParams::num_tokens)
      .field("out_stride", &EmbedParams::out_stride)
      .field("vocab_size", &EmbedParams::vocab_size)
      .field("hidden", &EmbedParams::hidden)
      .field("scale", &EmbedParams::scale)
      .field("format", &EmbedParams::format);

  ParamsClass<TakeRowsParams>(m, "TakeRowsParams")
      .field("x", &TakeRowsParams::x)
      .field("rows", &TakeRowsParams::rows)
      .field("out", &TakeRowsParams::out)
      .field("num_rows", &TakeRowsParams::num_rows)
      .field("x_stride", &TakeRowsParams::x_stride)
      .field("out_stride", &TakeRowsParams::out_stride)
      .field("hidden", &TakeRowsParams::hidden);

  ParamsClass<SoftCapParams>(m, "SoftCapParams")
      .field("x", &SoftCapParams::x)
      .field("num_tokens", &SoftCapParams::num_tokens)
      .field("x_stride", &SoftCapParams::x_stride)
      .field("hidden", &SoftCapParams::hidden)
      .field("cap", &SoftCapParams::cap);

  ParamsClass<SampleParams>(m, "SampleParams")
      .field("logits", &SampleParams::logits)
      .field("temperature", &SampleParams::temperature)
      .field("top_k", &SampleParams::top_k)
      .field("top_p", &SampleParams::top_p)
      .field("min_p", &SampleParams::min_p)
      .field("repetition", &SampleParams::repetition)
      .field("presence", &SampleParams::presence)
      .field("frequency", &SampleParams::frequency)
      .field("seeds", &SampleParams::seeds)
      .field("offsets", &SampleParams::offsets)
      .field("history", &SampleParams::history)
      .field("history_starts", &SampleParams::history_starts)
      .field("output_starts", &SampleParams::output_starts)
      .field("tokens", &SampleParams::tokens)
      .field("logprobs", &SampleParams::logprobs)
      .field("top_tokens", &SampleParams::top_tokens)
      .field("top_logprobs", &SampleParams::top_logprobs)
      .field("logits_stride", &SampleParams::logits_stride)
      .field("num_rows", &SampleParams::num_rows)
      .field("vocab_size", &SampleParams::vocab_size)
      .field("num_top", &SampleParams::num_top);
}

}  // namespace

void bind_ops(py::module_& m) {
  bind_params(m);
  def_kernel(m, "paged_attention", &KernelTable::paged_attention);
  def_kernel(m, "merge_states", &KernelTable::merge_states);
  def_kernel(m, "append_kv", &KernelTable::append_kv);
  def_kernel(m, "rms_norm", &KernelTable::rms_norm);
  def_kernel(m, "rope", &KernelTable::rope);
  def_kernel(m, "act_mul", &KernelTable::act_mul);
  def_kernel(m, "quantize_rows", &KernelTable::quantize_rows);
  def_kernel(m, "linear", &KernelTable::linear);
  def_kernel(m, "embed", &KernelTable::embed);
  def_kernel(m, "take_rows", &KernelTable::take_rows);
  def_kernel(m, "soft_cap", &KernelTable::soft_cap);
  def_kernel(m, "sample", &KernelTable::sample);
  m.def(
      "copy_pages",
      [](const CopyPagesParams& params, Team& team) {
        team.run([&](Worker& worker) { cpu::copy_pages(params, worker); });
      },
      py::arg("params"), py::arg("team"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace pagedserve::bind
