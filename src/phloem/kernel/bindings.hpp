// What the bindings of ring and builder share: memory of Python's objects, and frames as Python sees them.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "ring.hpp"

namespace phloem {

namespace nb = nanobind;

// Buffers of objects with contiguous memory, released with this object.
class BufferViews {
  public:
    explicit BufferViews(size_t most) { views_.reserve(most); }
    ~BufferViews() {
        for (Py_buffer& view : views_) PyBuffer_Release(&view);
    }
    BufferViews(const BufferViews&) = delete;
    BufferViews& operator=(const BufferViews&) = delete;
    const Py_buffer& add(nb::handle object) {
        Py_buffer view;
        if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) throw nb::python_error();
        views_.push_back(view);  // within what was reserved: Py_buffer may not move while it is in use
        return views_.back();
    }

  private:
    std::vector<Py_buffer> views_;
};

class BufferView {
  public:
    explicit BufferView(nb::handle object) : views_(1), view_(views_.add(object)) {}
    const uint8_t* data() const { return static_cast<const uint8_t*>(view_.buf); }
    size_t size() const { return static_cast<size_t>(view_.len); }

  private:
    BufferViews views_;
    const Py_buffer& view_;
};

// The memory of one frame's body, read-only, as long as anything looks at it: it keeps the ring mapped.
struct Body {
    std::shared_ptr<Mapping> map;
    const uint8_t* data;
    size_t size;
    int looking = 0;

    static int get(PyObject* self, Py_buffer* view, int flags) {
        Body* body = nb::inst_ptr<Body>(self);
        if (PyBuffer_FillInfo(view, self, const_cast<uint8_t*>(body->data), static_cast<Py_ssize_t>(body->size), 1,
                              flags) != 0)
            return -1;
        ++body->looking;
        return 0;
    }
    static void release(PyObject* self, Py_buffer*) { --nb::inst_ptr<Body>(self)->looking; }
};

// A frame in a ring. `body` is a read-only view that dies when the frame is closed.
struct Frame {
    const FrameHeader* header;
    uint64_t end;
    std::shared_ptr<Mapping> map;
    nb::object owner, view;

    const uint8_t* bytes() const {
        if (!header) throw RingError("this frame has been released");
        return reinterpret_cast<const uint8_t*>(header + 1);
    }
    nb::object body() {
        const uint8_t* p = bytes();
        if (!view.is_valid()) {
            if (!owner.is_valid()) owner = nb::cast(Body{map, p, header->body_size});
            view = nb::steal(PyMemoryView_FromObject(owner.ptr()));
            if (!view.is_valid()) throw nb::python_error();
        }
        return view;
    }
    nb::bytes meta() const {
        const uint8_t* p = bytes();  // first: it looks whether there is a header
        return nb::bytes(p + header->body_size, header->meta_size);
    }
    void close() {
        if (view.is_valid()) view.attr("release")();
        view = nb::object();
        if (owner.is_valid() && nb::cast<Body&>(owner).looking > 0) {
            PyErr_SetString(PyExc_BufferError, "an array still looks at this frame; let go of it before the frame is closed");
            throw nb::python_error();
        }
        owner = nb::object();
        header = nullptr;
        map.reset();
    }
};

inline std::vector<BankSpan> bank_spans(nb::list banks, BufferViews& views, size_t n_events) {
    std::vector<BankSpan> spans;
    spans.reserve(banks.size());
    for (nb::handle item : banks) {
        PyObject* bank = item.ptr();
        if (!PyTuple_Check(bank) || PyTuple_GET_SIZE(bank) != 3) throw nb::type_error("a bank is (name, TID, data)");
        PyObject* name = PyTuple_GET_ITEM(bank, 0);
        if (!PyBytes_Check(name) || PyBytes_GET_SIZE(name) != 4) throw nb::value_error("a bank name has 4 bytes");
        const Py_buffer& data = views.add(PyTuple_GET_ITEM(bank, 2));
        const size_t size = static_cast<size_t>(data.len);
        if (size % n_events != 0) throw nb::value_error("bank data do not divide into the events");
        if (size / n_events > 0x7FFFFFFF) throw nb::value_error("a bank has less than 2 GiB");
        BankSpan span{};
        std::memcpy(span.name, PyBytes_AS_STRING(name), 4);
        span.tid = nb::cast<uint32_t>(nb::handle(PyTuple_GET_ITEM(bank, 1)));
        span.data = static_cast<const uint8_t*>(data.buf);
        span.size = size / n_events;
        spans.push_back(span);
    }
    return spans;
}

void bind_builder(nb::module_& m);

}  // namespace phloem
