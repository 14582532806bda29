// SPDX-License-Identifier: Apache-2.0
// The Python module: argument checks and nothing else. Calls release the GIL while they work; Error arrives in Python as
// RuntimeError, ArgumentError as ValueError.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>
#include <type_traits>
#include <vector>

#include "bert_infer.h"
#include "common.h"
#include "trt_runner.h"

namespace py = pybind11;

namespace {

constexpr int kExact = py::array::c_style | py::array::forcecast;  // forced only where no value can change
using IntArray = py::array_t<int, kExact>;

template <class Wide>
IntArray narrowed(const py::array& values, const char* name) {
  using Limits = std::numeric_limits<int>;
  const py::array_t<Wide, kExact> wide(values);
  IntArray narrow(std::vector<py::ssize_t>(values.shape(), values.shape() + values.ndim()));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const Wide value = wide.data()[i];
    const bool fits = value <= static_cast<Wide>(Limits::max()) && (std::is_unsigned_v<Wide> || value >= static_cast<Wide>(Limits::min()));
    if (!fits) bert::refuse(name, " holds ", value, " at entry ", i, ", more than 32 bits hold");
    narrow.mutable_data()[i] = static_cast<int>(value);
  }
  return narrow;
}

// Python's integers, or its booleans; none is rounded or cut off.
IntArray integers(const py::object& object, const char* name) {
  const py::array values = py::array::ensure(object);
  if (!values) bert::refuse(name, " is no array");
  const char kind = values.dtype().kind();
  if (kind != 'i' && kind != 'u' && kind != 'b') bert::refuse(name, " holds values of type ", std::string(py::str(values.dtype())), "; give integers");
  if (values.dtype().is(py::dtype::of<int>())) return IntArray(values);
  return kind == 'i' ? narrowed<long long>(values, name) : narrowed<unsigned long long>(values, name);
}

bert::HostBatch host_batch(const IntArray& ids, const IntArray& segments, const IntArray& cu_seqlens) {
  if (ids.ndim() != 1 || segments.ndim() != 1 || cu_seqlens.ndim() != 1) bert::refuse("ids, segments and cu_seqlens must each have one dimension");
  if (ids.size() != segments.size()) bert::refuse("there are ", ids.size(), " ids and ", segments.size(), " segments");
  if (cu_seqlens.size() < 2) bert::refuse("cu_seqlens needs at least 2 entries, it has ", cu_seqlens.size());
  const int size = static_cast<int>(cu_seqlens.size()) - 1;
  for (int i = 0; i < size; ++i) {
    if (cu_seqlens.data()[i] > cu_seqlens.data()[i + 1]) bert::refuse("cu_seqlens falls at entry ", i + 1);
  }
  if (cu_seqlens.data()[size] != ids.size()) bert::refuse("cu_seqlens ends with ", cu_seqlens.data()[size], " for ", ids.size(), " tokens");
  return {ids.data(), segments.data(), cu_seqlens.data(), size};
}

std::string shape_of(const py::array& array) { return py::str(array.attr("shape")); }

class BertInf {
 public:
  BertInf(const std::string& path, int max_batch, int max_length, bool graph, bool plain, const std::string& choices) {
    py::gil_scoped_release unlocked;
    runner_ = bert::load_runner(path, {max_batch, max_length, graph, plain, choices});
  }

  void prepare(int size, int length) {
    py::gil_scoped_release unlocked;
    runner_->prepare(size, length != 0 ? length : runner_->max_length());
  }

  py::array_t<float> run_packed(const py::object& given_ids, const py::object& given_segments, const py::object& given_cu_seqlens) {
    const IntArray ids = integers(given_ids, "ids"), segments = integers(given_segments, "segments"), cu_seqlens = integers(given_cu_seqlens, "cu_seqlens");
    const bert::HostBatch batch = host_batch(ids, segments, cu_seqlens);
    py::array_t<float> logits({static_cast<py::ssize_t>(ids.size()), py::ssize_t{2}});
    float* to = logits.mutable_data();
    py::gil_scoped_release unlocked;
    runner_->run(batch, to);
    return logits;
  }

  // The call of the old module: rectangles (batch, length), or flat for batch 1. Padding is taken out on the way in and its
  // logits are 0. A padded engine answers (batch, length, 2, 1, 1), a packed one all starts, then all ends.
  py::array_t<float> run(const py::object& given_ids, const py::object& given_segments, const py::object& given_mask) {
    const IntArray ids = integers(given_ids, "input_ids"), segments = integers(given_segments, "segment_ids"), mask = integers(given_mask, "input_mask");
    if (ids.ndim() < 1 || ids.ndim() > 2 || ids.size() == 0) bert::refuse("input_ids must be (batch, length) or (length,), and not empty");
    const std::string shape = shape_of(ids);
    if (shape_of(segments) != shape || shape_of(mask) != shape) {
      bert::refuse("input_ids, segment_ids and input_mask have the shapes ", shape, ", ", shape_of(segments), " and ", shape_of(mask), "; give one shape");
    }
    const int size = ids.ndim() == 2 ? static_cast<int>(ids.shape(0)) : 1, length = static_cast<int>(ids.size() / size);
    std::vector<int> packed_ids, packed_segments, bounds{0};
    for (int i = 0; i < size; ++i) {
      const int* row = mask.data() + static_cast<size_t>(i) * length;
      int real = 0;
      while (real < length && row[real] != 0) ++real;
      for (int j = real; j < length; ++j) {
        if (row[j] != 0) bert::refuse("input_mask of sequence ", i, " is not a run of ones followed by zeros");
      }
      const size_t first = static_cast<size_t>(i) * length;
      packed_ids.insert(packed_ids.end(), ids.data() + first, ids.data() + first + real);
      packed_segments.insert(packed_segments.end(), segments.data() + first, segments.data() + first + real);
      bounds.push_back(static_cast<int>(packed_ids.size()));
    }
    std::vector<float> logits(2 * packed_ids.size());
    {
      py::gil_scoped_release unlocked;
      runner_->run({packed_ids.data(), packed_segments.data(), bounds.data(), size}, logits.data());
    }
    const bool padded = runner_->info().layout == "padded";
    const py::ssize_t places = static_cast<py::ssize_t>(size) * length;
    py::array_t<float> out = padded ? py::array_t<float>({py::ssize_t{size}, py::ssize_t{length}, py::ssize_t{2}, py::ssize_t{1}, py::ssize_t{1}})
                                    : py::array_t<float>(2 * places);
    float* to = out.mutable_data();
    std::fill(to, to + 2 * places, 0.f);
    for (int i = 0; i < size; ++i) {
      for (int j = bounds[i]; j < bounds[i + 1]; ++j) {
        const py::ssize_t place = static_cast<py::ssize_t>(i) * length + j - bounds[i];
        to[padded ? 2 * place : place] = logits[2 * j];
        to[padded ? 2 * place + 1 : places + place] = logits[2 * j + 1];
      }
    }
    return out;
  }

  void stage(const py::object& given_ids, const py::object& given_segments, const py::object& given_cu_seqlens) {
    const IntArray ids = integers(given_ids, "ids"), segments = integers(given_segments, "segments"), cu_seqlens = integers(given_cu_seqlens, "cu_seqlens");
    const bert::HostBatch batch = host_batch(ids, segments, cu_seqlens);
    py::gil_scoped_release unlocked;
    runner_->stage(batch);
  }

  float time_staged() {
    py::gil_scoped_release unlocked;
    return runner_->time_staged();
  }

  py::dict facts() const {
    const bert::Facts f = runner_->facts();
    py::dict d;
    d["device"] = f.device;
    d["path"] = f.path;
    d["compute_capability"] = f.compute_capability;
    d["multiprocessors"] = f.multiprocessors;
    d["clock_mhz"] = f.clock_mhz;
    d["driver"] = f.driver;
    d["runtime"] = f.runtime;
    d["weight_bytes"] = f.weight_bytes;
    d["activation_bytes"] = f.activation_bytes;
    return d;
  }

  std::string choices() const {
    py::gil_scoped_release unlocked;  // a run in another thread holds the runner, and returns only with the GIL
    return runner_->choices();
  }
  bool searched(int size, int longest, int tokens) const {
    py::gil_scoped_release unlocked;
    return runner_->searched(size, longest, tokens);
  }

 private:
  std::unique_ptr<bert::Runner> runner_;
};

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// Compute capability of device 0 as 10 * major + minor; 0 without one.
int capability() {
  int major = 0, minor = 0;
  if (device_count() == 0) return 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  return 10 * major + minor;
}

// Name of device 0; empty without one.
std::string device_name() {
  cudaDeviceProp properties{};
  return device_count() > 0 && cudaGetDeviceProperties(&properties, 0) == cudaSuccess ? properties.name : "";
}

// Parse an engine file's header without a GPU: what a test of the reader needs.
py::dict read_engine(const std::string& path) {
  const bert::EngineFile file(path);
  const bert::EngineInfo& info = file.info();
  py::dict d;
  d["layout"] = info.layout;
  d["precision"] = info.precision;
  d["max_batch"] = info.max_batch();
  d["max_length"] = info.max_length();
  d["hidden_size"] = info.config.hidden_size;
  d["layer_norm_eps"] = info.config.layer_norm_eps;
  d["gelu_erf"] = info.config.gelu_erf;
  return d;
}

// An exception whose message may quote bytes of a file that are no UTF-8.
void set_error(PyObject* type, const std::exception& error) {
  const py::object message = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(error.what(), static_cast<py::ssize_t>(std::strlen(error.what())), "replace"));
  if (message) PyErr_SetObject(type, message.ptr());
}

}  // namespace

PYBIND11_MODULE(infer_c, m) {
  m.doc() = "BERT question answering on NVIDIA GPUs: loads a cuda engine and runs it.";
  m.attr("revision") = bert::kRevision;
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const bert::Error& error) {
      set_error(PyExc_RuntimeError, error);
    } catch (const bert::ArgumentError& error) {
      set_error(PyExc_ValueError, error);
    }
  });
  py::class_<BertInf>(m, "bert_inf")
      .def(py::init<const std::string&, int, int, bool, bool, const std::string&>(), py::arg("engine_path"), py::arg("max_batch") = 0,
           py::arg("max_sequence_length") = 0, py::arg("enable_graph") = false, py::arg("plain") = false, py::arg("choices") = "")
      .def("prepare", &BertInf::prepare, py::arg("batch"), py::arg("length") = 0)
      .def("run", &BertInf::run, py::arg("input_ids"), py::arg("segment_ids"), py::arg("input_mask"))
      .def("run_packed", &BertInf::run_packed, py::arg("ids"), py::arg("segments"), py::arg("cu_seqlens"))
      .def("stage", &BertInf::stage, py::arg("ids"), py::arg("segments"), py::arg("cu_seqlens"))
      .def("time_staged", &BertInf::time_staged)
      .def("facts", &BertInf::facts)
      .def("choices", &BertInf::choices)
      .def("searched", &BertInf::searched, py::arg("batch"), py::arg("longest"), py::arg("tokens"));
  m.def("device_count", &device_count);
  m.def("capability", &capability);
  m.def("device_name", &device_name);
  m.def("tensorrt_version", &bert::tensorrt_version);
  m.def("read_engine", &read_engine, py::arg("path"));
}
