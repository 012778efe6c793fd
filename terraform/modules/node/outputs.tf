output "unit" {
  description = "/etc/systemd/system/atoll-node.service"
  value       = local.unit
}

output "config" {
  description = "/etc/atoll/node.toml"
  value       = local.config
}

output "sysctl" {
  description = "/etc/sysctl.d/60-atoll.conf"
  value       = local.sysctl
}
