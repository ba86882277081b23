# SPDX-License-Identifier: Apache-2.0
"""The engine's own scheduler in virtual time: workloads, step costs, replicas, autoscaling, capacity planning."""
