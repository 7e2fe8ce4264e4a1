#pragma once

#include <Eigen/Core>

namespace quantd::compute {

struct RightSingular {
  Eigen::MatrixXd vectors;  // n x n orthogonal, a column for each value
  Eigen::VectorXd values;   // n, descending, >= 0
};

// Right singular vectors and singular values of an m x n matrix with m >= n by one-sided Jacobi
// rotations (Hestenes; Demmel and Veselic 1992): small singular values keep their relative accuracy
// where the columns' scales differ, which an eigendecomposition of G^T G would lose. The
// largest-magnitude entry of each vector (the first of equal ones) is positive, so that the result
// does not depend on the implementation. `g` is finite.
RightSingular SolveRightSingular(Eigen::MatrixXd g);

}  // namespace quantd::compute
