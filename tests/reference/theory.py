"""The bounds of Theorems 1–4, of momentum, SGD's and SPIDER-SFO's, straight from their statements, one a function."""

from math import exp, log, sqrt


def theorem1(L, sigma, gap, lr, b, T):
    return gap / (lr * (T + 1)) + L * lr / 2 + 2 * sigma / sqrt(b)


def theorem2(L0, sigma, gap, lr, b, T):
    return 2 * gap / (lr * (T + 1)) + 2 * L0 * lr + 4 * sigma / sqrt(b)


def _stage_sums(stages):
    """(q_0 + Σ max{0, q_t − q_{t−1}}, Σ_{t=1}^T α_{t−1}p_t, Σ p_t) of [(α_t, M_t, p_{t+1}), …]."""
    alpha = [stage[0] for stage in stages]  # alpha[t], t = 0 … T − 1
    p = [None] + [stage[2] for stage in stages]  # p[t], t = 1 … T
    S = [stage[0] * stage[1] for stage in stages]
    T = len(stages)
    q = [p[t + 1] / S[t] for t in range(T)]
    rise = q[0]
    for t in range(1, T):
        rise += max(0, q[t] - q[t - 1])
    return rise, sum(alpha[t - 1] * p[t] for t in range(1, T + 1)), sum(p[1:])


def theorem3(L, sigma, delta, b, stages):
    rise, weighted, total = _stage_sums(stages)
    return delta * rise / total + L * weighted / (2 * total) + 2 * sigma / sqrt(b)


def theorem4(L0, sigma, delta, b, stages):
    rise, weighted, total = _stage_sums(stages)
    return 2 * delta * rise / total + 2 * L0 * weighted / total + 4 * sigma / sqrt(b)


def corollary1(L, sigma, delta, b, rho, T, S):
    return 2 * delta / (S * (T + 1)) + L * rho / (T + 1) + 2 * sigma / sqrt(b)


def corollary2(L, sigma, delta, b, rho, T, S):
    total = ((2 * rho) ** -T - 1) / (1 - 2 * rho)
    return delta * (2 * rho) ** -T / (S * total) + L * (1 - 2**-T) / (2 * total) + 2 * sigma / sqrt(b)


def ghadimi_lan(L, sigma, gap, lr, b, N):
    """The root of Theorem 2.1's bound, with D_f² = 2Δ/L and constant steps."""
    mean_square_over_L = (2 * gap / L + sigma**2 / b * N * lr**2) / (N * (2 * lr - L * lr**2))
    return sqrt(L * mean_square_over_L)


def spider(L, sigma, gap, lr, beta, b, B, M, N):
    variance = (M - 1) * lr**2 * L**2 / b + sigma**2 / B
    return 4 * gap / (lr * N) + lr / beta + 2 * beta / lr * variance + sqrt(variance)


def momentum_by_sums(L, sigma, gap, plan, b, kappa=1.0):
    """Normalized momentum for [(α_t, β_t, π_t)], one triple a step: every weight of every gradient in every mean."""
    total = gap_share = 0.0
    for t, (lr, _, probability) in enumerate(plan):
        weights = []
        for s in range(t + 1):
            kept = 1.0
            for r in range(s + 1, t + 1):
                kept *= plan[r][1]
            weights.append((1 - plan[s][1]) * kept)
        weights = [weight / sum(weights) for weight in weights]
        drift = sum(weights[s] * L * sum(plan[r][0] for r in range(s, t)) for s in range(t + 1))
        noise = kappa * sigma * sqrt(sum(weight**2 for weight in weights) / b)
        total += probability * (L * lr / 2 + 2 * drift + 2 * noise)
        gap_share = probability / lr  # the same for every step, so that the decreases telescope
    return gap_share * gap + total


def momentum_by_quadrature(L, sigma, gap, lr, beta, b, N, kappa=1.0):
    """Normalized momentum with constant α and β, the integral in the noise term by quadrature."""
    from scipy.integrate import quad

    a = 1 - beta

    def spread(t):
        return sqrt((1 + beta**t) / (1 - beta**t)) if beta else 1.0

    end = min(N, 60 / a)  # beyond, the spread is one
    excess = quad(lambda u: (spread(exp(u)) - 1) * exp(u), 0, log(end), limit=500, epsrel=1e-10)[0]  # t = e^u
    mean = (spread(1) + N - 1 + excess) / N
    noise = 2 * kappa * sigma / sqrt(b) * sqrt(a / (2 - a)) * mean
    return gap / (lr * N) + L * lr * (1 / 2 + 2 * beta / a) + noise


def momentum_with_first_batch(L, sigma, gap, lr, beta, b, N, b0, kappa=1.0):
    """The same for m_0 from b_0 samples, from the variance of every mean's noise, √(x + y) ≤ √x + √y."""
    a = 1 - beta
    first = sum(beta**t * kappa * sigma / sqrt(b0) for t in range(N))
    later = (N - 1) * kappa * sigma / sqrt(b) * sqrt(a / (2 - a))
    return gap / (lr * N) + L * lr * (1 / 2 + 2 * beta / a) + 2 * (first + later) / N


def capped(L, sigma, gap, lr, beta, b, N, kappa=1.0):
    noise = kappa * sigma / sqrt(b)
    return (gap / (lr * N) + noise) / (1 - L * beta / 2) + lr / (4 * beta) + noise
