output "endpoints" {
  description = "Each region's endpoint."
  value       = { for i, code in var.regions : code => "http://127.0.0.1:${var.port_base + i}" }
  depends_on  = [terraform_data.fleet]
}

output "regions" {
  description = "The regions' descriptors."
  value       = { for code in var.regions : code => local.descriptors[code] }
}

output "nodes" {
  description = "The nodes, their regions and ports."
  value       = local.nodes
}

output "env_file" {
  description = "The file with the variables for clients, the API key among them: source it."
  value       = "${local.data}/env"
  depends_on  = [terraform_data.fleet]
}
