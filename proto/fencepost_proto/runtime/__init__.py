"""What every process needs: configuration, start and end, tasks, failure, time, disks."""
