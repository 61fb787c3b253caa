// Module _cpu: which x86-64 level this machine has. Compiled for the oldest CPU and without pybind11, so it can always be imported.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace {

// 1 to 4 on x86-64, 0 on any other architecture (which has a single build of the core).
PyObject* level(PyObject*, PyObject*) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("popcnt");
    const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return PyLong_FromLong(v4 ? 4 : v3 ? 3 : v2 ? 2 : 1);
#else
    return PyLong_FromLong(0);
#endif
}

PyMethodDef methods[] = {
    {"level", level, METH_NOARGS, "level()\n--\n\nx86-64 level of this CPU, 1 to 4; 0 on other architectures."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "CPU detection.", 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__cpu() { return PyModule_Create(&definition); }
