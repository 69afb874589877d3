// Kernels whose PTX, as NVRTC 13.0 emits it for compute_80 with --generate-line-info, tests the
// parser and the interpreter together. kernels.ptx is made from this file, and tests/nvrtc.rs
// computes what it must give.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;

__device__ __noinline__ float horner(float x, int n) {
    float s = 0;
    for (int i = 0; i < n; i++) s = s * x + i;
    return s;
}

extern "C" __global__ void __launch_bounds__(256) sum(float* out, const float* x, int n) {
    __shared__ float part[8];
    float s = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) s += x[i];
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int o = 4; o; o >>= 1) s += __shfl_down_sync(~0u, s, o);
        if (threadIdx.x == 0) out[blockIdx.x] = s;
    }
}

extern "C" __global__ void softmax(float* y, const float* x, int cols) {
    extern __shared__ float row[];
    const float* r = x + (u64)blockIdx.x * cols;
    float m = -__int_as_float(0x7f800000);
    for (int i = threadIdx.x; i < cols; i += 32) {
        float v = r[i];
        row[i] = v;
        m = fmaxf(m, v);
    }
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    float s = 0;
    for (int i = threadIdx.x; i < cols; i += 32) {
        float e = expf(row[i] - m);
        row[i] = e;
        s += e;
    }
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    for (int i = threadIdx.x; i < cols; i += 32) y[(u64)blockIdx.x * cols + i] = row[i] / s;
}

// Philox 4x32-10: one counter a thread.
extern "C" __global__ void philox(uint4* out, u32 k0, u32 k1) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    u32 c0 = i, c1 = 0, c2 = 7, c3 = 0;
    for (int r = 0; r < 10; r++) {
        u32 h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        u32 h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0;
        c1 = l1;
        c2 = h0 ^ c3 ^ k1;
        c3 = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[i] = make_uint4(c0, c1, c2, c3);
}

extern "C" __global__ void adamw(float* w, float* m, float* v, const float* g, int n,
                                 float lr, float step) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float a = 0.9f * m[i] + 0.1f * g[i];
    float b = 0.99f * v[i] + 0.01f * g[i] * g[i];
    m[i] = a;
    v[i] = b;
    float ma = a / (1.f - powf(0.9f, step)), vb = b / (1.f - powf(0.99f, step));
    w[i] -= lr * (ma / (sqrtf(vb) + 1e-8f) + 0.01f * w[i]);
}

// C[16 x 8] = A[16 x k] B[8 x k]' in bf16, one warp, stages through cp.async, ldmatrix.
extern "C" __global__ void gemm(float* c, const u16* a, const u16* b, int k) {
    __shared__ __align__(16) u16 sa[2][16 * 16], sb[2][8 * 16];
    int t = threadIdx.x;
    float d[4] = {0, 0, 0, 0};
    auto stage = [&](int s, int k0) {
        u32 to = (u32)__cvta_generic_to_shared(&sa[s][t / 2 * 16 + t % 2 * 8]);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                     "l"(a + t / 2 * k + k0 + t % 2 * 8));
        if (t < 16) {
            to = (u32)__cvta_generic_to_shared(&sb[s][t / 2 * 16 + t % 2 * 8]);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                         "l"(b + t / 2 * k + k0 + t % 2 * 8));
        }
        asm volatile("cp.async.commit_group;");
    };
    stage(0, 0);
    for (int k0 = 0, s = 0; k0 < k; k0 += 16, s ^= 1) {
        if (k0 + 16 < k) stage(s ^ 1, k0 + 16);
        else asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;");
        __syncthreads();
        u32 ra[4], rb[2];
        u32 from = (u32)__cvta_generic_to_shared(&sa[s][t % 16 * 16 + t / 16 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(ra[0]), "=r"(ra[1]), "=r"(ra[2]), "=r"(ra[3]) : "r"(from));
        from = (u32)__cvta_generic_to_shared(&sb[s][t % 8 * 16 + t / 8 % 2 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                     : "=r"(rb[0]), "=r"(rb[1]) : "r"(from));
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "r"(rb[0]),
                       "r"(rb[1]));
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) c[(t / 4 + i / 2 * 8) * 8 + t % 4 * 2 + i % 2] = d[i];
}

// Calls, a switch, local arrays with computed indices, 64-bit division.
extern "C" __global__ void mixed(u32* out, const u32* in, int n) {
    int i = threadIdx.x, a[8];
    for (int j = 0; j < 8; j++) a[j] = in[(i + j) % n];
    u32 s = 0;
    for (int j = 0; j < 12; j++) {
        int k = in[(i + j) % n] & 7;
        s += a[k];
        a[k] = s;
    }
    switch (i & 7) {
        case 0: s += 1; break;
        case 1: s *= 3; break;
        case 2: s ^= 7; break;
        case 3: s /= 9; break;
        case 4: s -= 2; break;
        case 5: s |= 77; break;
        case 6: s = ~s; break;
        default: s = s << 3 | s >> 29;
    }
    u64 wide = ((u64)s << 20 | i) / (u64)(i + 3);
    out[i] = (u32)wide ^ (u32)(wide >> 32) ^ (u32)horner(0.5f, i & 3);
}
