"""State machines on partitions of internal topics: pure cores, which decide by values. `coordinators/` carries them out."""
