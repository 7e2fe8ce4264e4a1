#include "compute/backend/cpu/jacobi_svd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace quantd::compute {
namespace {

// Convergence is quadratic; well-conditioned blocks take 5 to 8 sweeps.
constexpr int kMaxSweeps = 60;

// Rotates columns p and q of g to orthogonality, and v along. Whether they were not already.
bool Rotate(Eigen::MatrixXd& g, Eigen::MatrixXd& v, Eigen::VectorXd& norms, Eigen::Index p,
            Eigen::Index q) {
  constexpr double kOrthogonal = 4 * std::numeric_limits<double>::epsilon();
  const double cross = g.col(p).dot(g.col(q));
  if (!(std::abs(cross) > kOrthogonal * std::sqrt(norms[p]) * std::sqrt(norms[q]))) return false;
  // The smaller root of t^2 + 2 zeta t - 1 = 0.
  const double zeta = (norms[q] - norms[p]) / (2.0 * cross);
  const double t = std::copysign(1.0, zeta) / (std::abs(zeta) + std::hypot(1.0, zeta));
  const double c = 1.0 / std::hypot(1.0, t);
  const double s = c * t;
  for (Eigen::MatrixXd* matrix : {&g, &v}) {
    double* a = matrix->col(p).data();
    double* b = matrix->col(q).data();
    for (Eigen::Index i = 0; i < matrix->rows(); ++i) {
      const double x = a[i];
      const double y = b[i];
      a[i] = c * x - s * y;
      b[i] = s * x + c * y;
    }
  }
  norms[p] = std::max(norms[p] - t * cross, 0.0);
  norms[q] += t * cross;
  return true;
}

void FixSign(Eigen::Ref<Eigen::VectorXd> vector) {
  Eigen::Index largest = 0;
  vector.cwiseAbs().maxCoeff(&largest);
  if (vector[largest] < 0.0) vector = -vector;
}

}  // namespace

RightSingular SolveRightSingular(Eigen::MatrixXd g) {
  const Eigen::Index n = g.cols();
  Eigen::MatrixXd v = Eigen::MatrixXd::Identity(n, n);
  // Powers of two change no digit, and squares of a matrix near 1 stay in range.
  const double largest = g.cwiseAbs().maxCoeff();
  const double scale = largest > 0.0 ? std::ldexp(1.0, -std::ilogb(largest)) : 1.0;
  g *= scale;
  bool rotated = true;
  for (int sweep = 0; sweep < kMaxSweeps && rotated; ++sweep) {
    rotated = false;
    Eigen::VectorXd norms = g.colwise().squaredNorm();  // afresh: updates lose digits
    for (Eigen::Index p = 0; p + 1 < n; ++p) {
      for (Eigen::Index q = p + 1; q < n; ++q) rotated |= Rotate(g, v, norms, p, q);
    }
  }
  const Eigen::VectorXd values = g.colwise().norm() / scale;
  std::vector<Eigen::Index> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](Eigen::Index a, Eigen::Index b) { return values[a] > values[b]; });
  RightSingular result{Eigen::MatrixXd(n, n), Eigen::VectorXd(n)};
  for (Eigen::Index i = 0; i < n; ++i) {
    result.values[i] = values[order[i]];
    result.vectors.col(i) = v.col(order[i]);
    FixSign(result.vectors.col(i));
  }
  return result;
}

}  // namespace quantd::compute
