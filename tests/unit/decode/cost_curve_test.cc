#include "engine/decode/cost_curve.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"

namespace cogumi {
namespace {

TEST(CostCurve, LearnsTheShapeThroughNoise) {
  CostCurve curve;
  std::mt19937_64 random(1);
  const auto truth = [](int rows) { return rows <= 8 ? 4e-3 : 4e-3 + 1e-3 * (rows - 8); };
  for (int i = 0; i < 3000; ++i) {
    const int rows = 1 + static_cast<int>(random() % 12);
    double seconds = truth(rows) * (1 + 0.02 * static_cast<double>(random() % 100) / 100);
    if (random() % 50 == 0) seconds *= 10;  // another process came between
    curve.Observe(rows, seconds);
  }
  for (int rows = 1; rows <= 12; ++rows) {
    EXPECT_NEAR(curve.Estimate(rows) / truth(rows), 1.02, 0.1) << rows;
  }
}

TEST(CostCurve, AveragesWhatASizeCosts) {
  CostCurve curve;
  std::mt19937_64 random(2);
  std::normal_distribution<double> noise(0, 0.15);
  curve.Observe(1, 1.0);
  curve.Observe(5, 3.0);  // the first one of this size was held up
  for (int i = 0; i < 200; ++i) {
    for (int k = 0; k < 3; ++k) curve.Observe(1, std::exp(noise(random)));
    curve.Observe(5, 2 * std::exp(noise(random)));
  }
  EXPECT_NEAR(curve.Estimate(5) / curve.Estimate(1), 2, 0.15);
}

TEST(CostCurve, FillsGapsFromItsNeighbours) {
  CostCurve curve;
  for (int i = 0; i < 5; ++i) {
    curve.Observe(2, 1.0);
    curve.Observe(6, 2.0);
  }
  EXPECT_DOUBLE_EQ(curve.Estimate(4), 1.5);
  EXPECT_GT(curve.Estimate(8), 2.0);
  EXPECT_LT(curve.Estimate(8), 2.5);
  EXPECT_LT(curve.Estimate(1), 1.0);
}

TEST(CostCurve, MovesWithTheMachine) {
  CostCurve curve;
  for (int i = 0; i < 20; ++i) {
    curve.Observe(1, 1.0);
    curve.Observe(5, 1.5);
  }
  // Twice as slow, seen at one size only.
  for (int i = 0; i < 60; ++i) curve.Observe(1, 2.0);
  EXPECT_NEAR(curve.Estimate(1), 2.0, 0.05);
  EXPECT_NEAR(curve.Estimate(5), 3.0, 0.1);
}

TEST(CostCurve, DoesNotBelieveOldMeasurementsForEver) {
  CostCurve curve;
  curve.Observe(1, 1.0);
  curve.Observe(2, 100.0);
  EXPECT_GT(curve.Estimate(2), 10);
  int believed = 0;
  while (curve.Estimate(2) > 10 && believed < 100000) {
    curve.Observe(1, 1.0);
    ++believed;
  }
  EXPECT_LT(believed, 100);
  // It lost again: now it is believed for longer.
  curve.Observe(2, 100.0);
  int longer = 0;
  while (curve.Estimate(2) > 10 && longer < 100000) {
    curve.Observe(1, 1.0);
    ++longer;
  }
  EXPECT_GT(longer, 2 * believed - 10);
  EXPECT_LT(longer, 10 * believed);
}

TEST(CostCurve, IgnoresTimesThatAreNone) {
  CostCurve curve;
  curve.Observe(1, 0);
  curve.Observe(0, 1);
  EXPECT_FALSE(curve.Known());
  EXPECT_GT(curve.Estimate(3), curve.Estimate(1));
}

}  // namespace
}  // namespace cogumi
